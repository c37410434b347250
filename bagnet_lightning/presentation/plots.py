"""What all figures have in common: fonts, a grey, and how they become PNG files."""

import io
import logging
import warnings

from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

#: For names in scripts that matplotlib's own font lacks; used if the machine has them.
FONTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Source Han Sans", "WenQuanYi Zen Hei"),
    *("Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic"),
    *("Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS"),
)
rcParams["font.family"] = ["DejaVu Sans", *sorted({*FONTS} & {*fontManager.get_font_names()}, key=FONTS.index)]
rcParams["text.parse_math"] = False  # names of classes and files may hold $
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it warns of weights that a font does not have

GREY = "#666666"


def png(figure: Figure) -> bytes:
    """Returns a matplotlib figure as the bytes of a PNG."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # of a script that no font here has: drawn as boxes
        figure.savefig(stream, format="png")
    return stream.getvalue()
