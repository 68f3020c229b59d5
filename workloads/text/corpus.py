"""English text: paragraphs of the Python language reference, which come with this package.

`language_reference.txt` has one paragraph per line, with single spaces between words, without repetitions. The
paragraphs are from CPython's module `pydoc_data.topics`; versions 3.11.2, 3.11.7, 3.12.1 and 3.13.0 all have them.
`language_reference_LICENSE.txt` is their licence, that of the Python Software Foundation.
"""

import hashlib
from pathlib import Path

_TEXT = Path(__file__).with_name("language_reference.txt")
_SHA256 = "be3c468176763241fe913d4cdf885f466dfcfd5e7943fb862b1b9286fde350eb"


def paragraphs() -> list[str]:
    """
    Raises:
        ValueError: the file was changed.
    """
    text = _TEXT.read_text(encoding="utf-8").removesuffix("\n")
    if hashlib.sha256(text.encode()).hexdigest() != _SHA256:
        raise ValueError(f"{str(_TEXT)!r} is damaged: restore it from the repository, or install the package again")
    return text.split("\n")
