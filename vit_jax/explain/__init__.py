"""What a model looks at: attribution, scores of explanations, figures, and `Model`."""

import sys
import types


class _CallablePackage(types.ModuleType):
    """Makes `vit_jax.explain(...)` work: Python binds that name to this package once imported."""

    def __call__(self, *args, **kwargs):
        from vit_jax.explain.model import explain

        return explain(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
