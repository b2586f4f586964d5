"""A stand-in for ComfyUI's module of this name: what runs wrappers around a model, each of which calls the next."""


class WrappersMP:
    DIFFUSION_MODEL = "diffusion_model"


def get_all_wrappers(kind, transformer_options):
    return [one for several in transformer_options.get("wrappers", {}).get(kind, {}).values() for one in several]


class WrapperExecutor:
    def __init__(self, original, class_obj, wrappers):
        self.original, self.class_obj, self._wrappers = original, class_obj, wrappers

    @classmethod
    def new_class_executor(cls, original, class_obj, wrappers):
        return cls(original, class_obj, wrappers)

    def execute(self, *arguments, **keywords):
        if not self._wrappers:
            return self.original(*arguments, **keywords)
        return self._wrappers[0](self, *arguments, **keywords)

    def __call__(self, *arguments, **keywords):
        return WrapperExecutor(self.original, self.class_obj, self._wrappers[1:]).execute(*arguments, **keywords)
