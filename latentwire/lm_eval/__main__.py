"""lm-evaluation-harness's command line, with the model "latentwire" registered."""

# pyright: reportMissingImports=false
from lm_eval.__main__ import cli_evaluate

import latentwire.lm_eval  # noqa: F401  (registers the model)

if __name__ == "__main__":
    cli_evaluate()
