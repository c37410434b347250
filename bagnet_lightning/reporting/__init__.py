"""The results of runs beside the paper's: tables, pictures, a page."""
