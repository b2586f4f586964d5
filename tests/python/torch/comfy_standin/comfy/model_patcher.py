"""A stand-in for ComfyUI's module of this name. Its clones are plain, as some versions' are."""


class ModelPatcher:
    def __init__(self, model, load_device, offload_device, size=0, weight_inplace_update=False):
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        self.patches = {}

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        self.patches.update(patches)
        return list(patches)

    def add_hook_patches(self, hook, patches, strength_patch=1.0, strength_model=1.0):
        return list(patches)

    def get_key_patches(self, filter_prefix=None):
        weights = self.model.state_dict()
        return {key: [weights[key]] for key in weights if filter_prefix is None or key.startswith(filter_prefix)}

    def set_injections(self, key, injections):
        self.injections = {key: injections}

    def clone(self):
        return ModelPatcher(self.model, self.load_device, self.offload_device)
