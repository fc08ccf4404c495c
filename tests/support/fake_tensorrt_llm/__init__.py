"""A TensorRT-LLM that runs nowhere but here, and is as strict as paper can be.

Made from the signatures in the project's notes on TensorRT-LLM: the same names, the same argument lists per
release, the same kind of objects. What the real one would reject, ignore or crash at raises here. The output
object is changed in place and comes out of its own iterator, as the real one does. Its "model" is a hash of
the context, so greedy answers repeat; that is all it has in common with a language model.

    with installed("1.2.1") as behaviour:
        ...  # `import tensorrt_llm` works; `behaviour` makes it fail
"""

from tests.support.fake_tensorrt_llm.behaviour import Behaviour
from tests.support.fake_tensorrt_llm.package import VERSIONS, installed

__all__ = ["VERSIONS", "Behaviour", "installed"]
