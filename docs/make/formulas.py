"""Formulas as MathML, which every browser shows without a script."""

import html
import re


def mathml(page: str) -> str:
    """The page with the formulas that arithmatex marked as MathML."""
    from latex2mathml.converter import convert

    def formula(found: re.Match[str]) -> str:
        latex = re.sub(r"\\(math\w+) (\w)", r"\\\1{\2}", html.unescape(found["latex"]).strip())
        latex = latex.replace(r"\mathbf{1}", "𝟏")  # there is no bold digit in MathML but this one
        made = convert(latex, display="block" if found["tag"] == "div" else "inline")
        # Bars are no operators with space about them, and a prime is raised already.
        made = re.sub(r"<mo[^>]*>(&#x0007C;|&#x02016;)", r'<mo stretchy="false" lspace="0" rspace="0">\1', made)
        return re.sub(r"<msup>(<mi>[^<]*</mi>)<mi>(&#x0203[23];)</mi></msup>", r"<mrow>\1<mi>\2</mi></mrow>", made)

    inline = r'<(?P<tag>span|div) class="arithmatex">\s*\\[(\[](?P<latex>.*?)\\[)\]]\s*</(?P=tag)>'
    return re.sub(inline, formula, page, flags=re.DOTALL)
