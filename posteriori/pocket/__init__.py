"""pocket: the small base language model that ships, the generator of its text, its recipe."""

from pathlib import Path
from typing import Final

#: Folder that `AutoTokenizer.from_pretrained` and `AutoModelForCausalLM.from_pretrained` load.
WEIGHTS: Final = Path(__file__).parent / "weights"
