"""Print the shell commands of the README, so that CI runs what the reader pastes."""

import re
import sys
from pathlib import Path

blocks = re.findall(r"^```sh\n(.*?)^```$", Path("README.md").read_text(), re.M | re.S)
if not blocks:
    sys.exit("README.md has no sh blocks")
print("set -eux\n" + "".join(blocks))
