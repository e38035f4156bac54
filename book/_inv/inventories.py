"""Write the tiny intersphinx inventories beside this file: run it after adding a name.

The build then resolves names of Python and PyTorch without a network, and the same on every day.
"""

import zlib
from pathlib import Path

HERE = Path(__file__).parent


def write(file, project, entries):
    """Write one inventory in Sphinx's format 2."""
    head = (
        f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    body = "".join(f"{name} {role} 1 {uri} -\n" for name, role, uri in sorted(entries))
    (HERE / file).write_bytes(head.encode() + zlib.compress(body.encode(), 9))


def names(role, uri, *words):
    """Give several names the same role and page."""
    return [(word, role, uri) for word in words]


PYTHON = [
    *names(
        "py:class", "library/functions.html#$", "int", "float", "bool", "object", "type", "property"
    ),
    *names(
        "py:class",
        "library/stdtypes.html#$",
        "str",
        "list",
        "tuple",
        "dict",
        "set",
        "frozenset",
        "bytes",
    ),
    *names(
        "py:exception",
        "library/exceptions.html#$",
        "ValueError",
        "TypeError",
        "KeyError",
        "FileNotFoundError",
        "RuntimeError",
        "StopIteration",
        "OSError",
        "IndexError",
        "NotImplementedError",
    ),
    ("None", "py:data", "library/constants.html#$"),
    ("math.sqrt", "py:function", "library/math.html#$"),
    *[
        (f"collections.abc.{n}", "py:class", "library/collections.abc.html#$")
        for n in (
            "Callable",
            "Iterator",
            "Iterable",
            "Sequence",
            "Mapping",
            "Generator",
            "Hashable",
        )
    ],
    *[
        (f"typing.{n}", "py:class", "library/typing.html#$")
        for n in ("NamedTuple", "Protocol", "Iterator", "Sequence", "Callable")
    ],
    *[
        (f"typing.{n}", "py:data", "library/typing.html#$")
        for n in ("Any", "Callable", "Literal", "Optional", "Union")
    ],
    ("abc.ABC", "py:class", "library/abc.html#$"),
    ("pathlib.Path", "py:class", "library/pathlib.html#$"),
    ("os.PathLike", "py:class", "library/os.html#$"),
]
TORCH = [
    ("torch.Tensor", "py:class", "tensors.html#$"),
    ("torch._C.Generator", "py:class", "generated/torch.Generator.html#torch.Generator"),
    ("torch.Generator", "py:class", "generated/torch.Generator.html#$"),
    # fields of a NamedTuple keep their annotation as it is written
    ("Tensor", "py:class", "tensors.html#torch.Tensor"),
    ("torch.Size", "py:class", "size.html#$"),
    ("torch.device", "py:class", "tensor_attributes.html#$"),
    ("torch.dtype", "py:class", "tensor_attributes.html#$"),
    (
        "torch.nn.modules.module.Module",
        "py:class",
        "generated/torch.nn.Module.html#torch.nn.Module",
    ),
    ("torch.nn.Module", "py:class", "generated/torch.nn.Module.html#$"),
    (
        "torch.nn.Parameter",
        "py:class",
        "generated/torch.nn.parameter.Parameter.html#torch.nn.parameter.Parameter",
    ),
    ("torch.optim.optimizer.Optimizer", "py:class", "optim.html#torch.optim.Optimizer"),
    ("torch.optim.Optimizer", "py:class", "optim.html#$"),
    ("torch.utils.data.Dataset", "py:class", "data.html#$"),
]
NUMPY = [("numpy.ndarray", "py:class", "reference/generated/numpy.ndarray.html#$")]
MATPLOTLIB = [
    ("matplotlib.axes.Axes", "py:class", "api/_as_gen/matplotlib.axes.Axes.html#$"),
    (
        "matplotlib.axes._axes.Axes",
        "py:class",
        "api/_as_gen/matplotlib.axes.Axes.html#matplotlib.axes.Axes",
    ),
    ("matplotlib.figure.Figure", "py:class", "api/_as_gen/matplotlib.figure.Figure.html#$"),
]

if __name__ == "__main__":
    write("python.inv", "Python", PYTHON)
    write("torch.inv", "PyTorch", TORCH)
    write("numpy.inv", "NumPy", NUMPY)
    write("matplotlib.inv", "Matplotlib", MATPLOTLIB)
