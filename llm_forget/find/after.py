"""Search again in the folder of an unlearning run, and keep the result there for its report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_forget.data.row import Row
from llm_forget.errors import DataError, UserError
from llm_forget.find.again import Again, search_again
from llm_forget.find.corpus import Corpus
from llm_forget.find.search import Model
from llm_forget.find.sources import Place, line_of
from llm_forget.utils.files import write_record
from llm_forget.utils.search_record import AGAIN_NAME


def search_run(folder: Path, data: Sequence[str] = ()) -> Again:
    """Search again with the model of a run, and write ``search_again.json`` into its folder. It holds no text.

    Args:
        folder: of a complete unlearning run.
        data: files with the rows that stay, besides the forget rows; the retain rows of the recipe by default.

    Raises:
        UserError: it is no unlearning run, or a part of it cannot be read.
    """
    from llm_forget.config import UnlearnRecipe
    from llm_forget.data.examples import read_examples
    from llm_forget.data.sources import in_folder
    from llm_forget.runs import load_run
    from llm_forget.utils.build import build

    run = load_run(folder)
    if run.kind != "unlearn":
        raise UserError(f"--again: {folder} is no unlearning run; give the folder of one")
    recipe = build(UnlearnRecipe, run.recipe, f"{folder}, recipe")
    source = in_folder(recipe.data.forget, recipe.data_dir)
    stay = list(data)
    if not stay and recipe.data.retain is not None:
        stay = [in_folder(recipe.data.retain, recipe.data_dir).path]
    if not Path(source.path).expanduser().is_file():
        raise UserError(
            f"--again: the forget rows of {folder} are at {source.path}, which is no file here; start from the folder in "
            "which the run was started"
        )
    examples = read_examples(source)
    corpus = Corpus.read([source.path, *(one for one in stay if Path(one).expanduser().exists())])
    model, before = _models(folder, recipe)
    rows = [_row(corpus, source.path, example.source) for example in examples]
    found = search_again(corpus, examples, rows, model, before=before)
    files = [{"file": one.file, "rows": one.rows, "sha256": one.digest} for one in corpus.files]
    write_record(folder / AGAIN_NAME, {**found.as_dict(), "files": files})
    return found


def _row(corpus: Corpus, file: str, source: str) -> int:
    """The number of the row at a place that messages name."""
    row = corpus.row_at(Place(file, line_of(Row(source, {}))))
    if row is None:
        raise DataError(f"{source} cannot be searched: check the file of the forget rows")
    return row


def _models(folder: Path, recipe: Any) -> tuple[Model, Callable[[], Any]]:
    """The model after unlearning, and a context in which it answers as before."""
    from llm_forget.adapters.lora import load_adapter
    from llm_forget.config import ModelConfig
    from llm_forget.model.adapted import attach_adapter
    from llm_forget.model.load import load_model

    base, tokenizer = load_model(recipe.model)
    if (folder / "adapter").is_dir():
        adapted = attach_adapter(base, load_adapter(folder / "adapter")).eval()
        return Model(adapted, tokenizer, recipe.encoding), adapted.disable_adapter
    after, _ = load_model(ModelConfig(name=str(folder / "model"), dtype=recipe.model.dtype))
    model = Model(after, tokenizer, recipe.encoding)

    @contextmanager
    def before() -> Iterator[None]:
        model.model = base
        try:
            yield
        finally:
            model.model = after

    return model, before
