"""Which of a server's models a pipeline is given."""

from .client import Client
from .errors import NotFound
from .reports import Model


def served_model(client: Client, name: str, numerics: str) -> Model:
    """The model of this name, or the server's only one.

    Errors: NotFound where there is none; ValueError where its arithmetic is another than the pipeline's.
    """
    models = client.models()
    found = [model for model in models if model.name == name or (not name and len(models) == 1)]
    if not found:
        names = ", ".join(model.name for model in models)
        raise NotFound(f"model: expected one of {names}; found {name!r}", field="model")
    if found[0].numerics != numerics:
        raise ValueError(f"model {found[0].name!r}: expected `numerics: {numerics}`; the server has {found[0].numerics}'s")
    return found[0]
