"""What stands in two places of the repository stands there alike."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_THE_SPACES = {"torch", "opencv-python"}  # the Space pins torch as ZeroGPU does; insightface brings OpenCV


def read_requirements(text: str) -> dict[str, str]:
    """Package -> the versions that may be installed."""
    found = re.findall(r"^([\w\[\]-]+)([<>=!~][^;\s]*)", text, re.MULTILINE)
    return {name: versions for name, versions in found if name not in NOT_THE_SPACES}


def test_the_space_installs_the_versions_that_everyone_else_does():
    project = (ROOT / "pyproject.toml").read_text()
    lists = [
        re.search(rf"^{name} = \[(.*?)^\]", project, re.M | re.S)[1] for name in ("dependencies", "pytorch")
    ]
    wanted = read_requirements(re.sub(r'^ *"|",', "", "\n".join(lists), flags=re.MULTILINE))
    assert len(wanted) > 15 and read_requirements((ROOT / "requirements.txt").read_text()) == wanted


def test_the_pages_own_styles_are_light_and_ask_no_other_host():
    sheets = [path.read_text() for path in (ROOT / "page").glob("*.css")]
    assert 0 < sum(len(sheet.encode()) for sheet in sheets) < 10_000
    assert not any("//" in sheet or "@import" in sheet for sheet in sheets)
