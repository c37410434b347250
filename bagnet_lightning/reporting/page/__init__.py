"""The page of results: one HTML file that shows a whole sweep, or several side by side."""
