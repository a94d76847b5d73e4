"""lm-evaluation-harness's command line, with the model "latentwire" registered."""

# pyright: reportMissingImports=false
from latentwire.terminal import exit_with


def _evaluate() -> None:
    try:
        from lm_eval.__main__ import cli_evaluate  # pyright: ignore

        import latentwire.lm_eval.model  # noqa: F401  (registers the model)
    except ImportError as error:
        missing = (error.name or "lm_eval").partition(".")[0]
        raise ValueError(
            f"latentwire.lm_eval needs {missing}: pip install 'latentwire[lm-eval]'"
        ) from None
    cli_evaluate()


if __name__ == "__main__":
    exit_with(_evaluate)
