"""README's commands and those of its pages, and which of them cannot be run by the tests."""

import re
import shlex

from conftest import ROOT

PAGES = [
    ROOT / folder / "README.md" for folder in ("", "nanogpt_lib", "data", "tests/benchmarks")
]  # README, the programs, the data, the results
README = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
STARTS = "python python3 py torchrun pytest make pip nbdiff lm_eval conda git srun"
OTHERS = {  # what nobody can run here, and why
    r"git (clone|diff).*": "git's own; clone needs the network",
    r"(py -3.11|python3) -m venv .*": "make does it on a fresh clone",
    r"conda (env create|activate).*": "environment.yml is compared with pyproject.toml",
    r"conda config .*": "conda's own",
    r"lm_eval .*": "tests/test_interoperation.py calls lm-eval's classes where they are installed",
    r"srun .*|scontrol .*": "the Slurm script is run with stand-ins for Slurm",
}


def blocks(language: str = "") -> list[str]:
    """Their fenced blocks in a language ('' for none)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def commands() -> list[str]:
    """Every command, one line each, without the environment's folder and comments."""
    lines = "\n".join(blocks()).replace("\\\n", " ").split("\n")
    outside = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    lines += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", outside)
    found = []
    for line in lines:
        line = re.sub(r"\s+#.*", "", line.strip())
        for part in line.split(" && "):
            part = part.replace(".venv/bin/", "").strip()
            words = part.split()
            if len(words) > 1 and words[0] in STARTS.split():
                found.append(part)
    return list(dict.fromkeys(found))


def other(command: str) -> bool:
    """Whether a command is one of OTHERS."""
    return any(re.fullmatch(pattern, command) for pattern in OTHERS)


def programs() -> dict[str, list[str]]:
    """The commands that run a program of this repository: the command → program and arguments."""
    found = {}
    for command in commands():
        words = shlex.split(command)
        scripts = [i for i, word in enumerate(words) if word.endswith(".py") and "/" in word]
        if scripts and words[0] in ("python", "torchrun"):
            found[command] = words[scripts[0] :]
    return found
