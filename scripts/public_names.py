"""The public names of Durus 4.3, read from its source distribution without running it.

`tests/test_compatibility.py` holds docs/compatibility.md to this list.  A name is public when it
does not begin with an underscore, or begins with `_p_`, and is

* defined in a module: a function, a class, a value;
* a method or an attribute of a public class, or an attribute that its methods give to instances
  (a value that only overrides one of the base class stands with that);
* imported by a module from another module of Durus (`home` says which);
* imported from the standard library, if another module of Durus imports it from there
  (`durus.utils.loads`); otherwise such an import is nobody's business;
* an option of the command `durus`, or a file in `bin/`.

Of code for Python 2 or Windows nothing counts.  The C module `durus._persistent` has no public
name by these rules, so all that it exports is taken.
"""

import ast
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

__all__ = ["COMMAND_LINE", "SCRIPTS", "Name", "Parameters", "read_names", "read_sdist"]

COMMAND_LINE: Final = "The command line"
"""What stands for a module in the names of options."""
SCRIPTS: Final = "Scripts"

_C_EXPORTS: Final = re.compile(
    r'^\s*\{"(\w+)", \w+,\s*METH_|PyDict_SetItemString\(\w+, "(\w+)"', re.MULTILINE
)
_FIRST_BRANCH: Final = {
    "sys.version < '3'": False,
    "os.name == 'nt'": False,
    "os.name != 'nt'": True,
}
"""Which branch of an `if` counts; of all other tests both do."""

_PLUMBING: Final = {"__new__", "__slots__", "__weakref__"}

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


class Parameters(NamedTuple):
    """What a function can be called with; `self` is left out."""

    positional: tuple[str, ...]
    optional: frozenset[str]
    """Those that have defaults."""
    any_positional: bool = False
    """It takes `*args`."""
    any_keyword: bool = False


@dataclass(frozen=True, slots=True)
class Name:
    """One name: durus.connection, Connection, commit."""

    module: str
    owner: str
    """The class, or the call of the command line; '' for what the module itself has."""
    name: str
    parameters: Parameters | None = None
    """Of functions and methods, and of classes that have an `__init__`."""
    home: str = ""
    """The module that it was imported from."""

    @property
    def special(self) -> bool:
        """Whether it is a method that Python calls, such as `__len__`."""
        return bool(self.owner) and _is_special(self.name)

    def __str__(self) -> str:
        return ".".join(filter(None, (self.module, self.owner, self.name)))


def read_sdist(path: Path) -> dict[str, str]:
    """The files of a source distribution, by their paths below its one folder."""
    files: dict[str, str] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                files[member.name.partition("/")[2]] = file.read().decode("utf-8", "replace")
    return files


def read_names(files: dict[str, str]) -> list[Name]:
    """The public names in these files, in the order of the modules and of their sources."""
    modules = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): ast.parse(source)
        for path, source in sorted(files.items())
        if re.fullmatch(r"durus/\w+\.py", path)
    }
    readers = {module: _ModuleReader(module) for module in modules}
    for module, reader in readers.items():
        reader.read(modules[module])
    wanted = {(name.home, name.name) for r in readers.values() for name in r.names.values()}
    names = [
        name
        for module, reader in readers.items()
        for name in reader.names.values()
        if name.home.partition(".")[0] in ("", "durus") or (module, name.name) in wanted
    ]
    for path, source in sorted(files.items()):
        if re.fullmatch(r"durus/\w+\.c", path):
            module = path.removesuffix(".c").replace("/", ".")
            names += [Name(module, "", name) for name in _find_c_exports(source)]
        elif path.startswith("bin/"):
            names.append(Name(SCRIPTS, "", path.removeprefix("bin/")))
    if "durus.__main__" in modules:
        names += _find_options(modules["durus.__main__"])
    return names


def _find_c_exports(source: str) -> list[str]:
    return sorted({first or second for first, second in _C_EXPORTS.findall(source)})


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name.startswith("_p_") or name == "__version__"


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__") and name not in _PLUMBING


@dataclass(slots=True)
class _ModuleReader:
    """Collects the names of one module: later definitions replace earlier ones, as they do."""

    module: str
    names: dict[tuple[str, str], Name] = field(default_factory=dict)
    _functions: dict[tuple[str, str], Function] = field(default_factory=dict)

    def read(self, tree: ast.Module) -> None:
        for node in _gen_statements(tree.body):
            match node:
                case ast.FunctionDef():
                    self._add("", node.name, _read_parameters(node))
                case ast.ClassDef() if _is_public(node.name):
                    self._read_class(node)
                case ast.ImportFrom():
                    for alias in node.names:
                        self._add_import(alias.asname or alias.name, node.module or "")
                case ast.For(target=ast.Name(id=variable)):
                    self._read_loop(node, variable)
                case ast.Delete():
                    for target in node.targets:
                        self.names.pop(("", ast.unparse(target)), None)
                case ast.Assign():
                    for name in _gen_assigned(node):
                        self._add("", name)

    def _add(self, owner: str, name: str, parameters: Parameters | None = None) -> None:
        if _is_public(name) or (owner and _is_special(name)):
            self.names[owner, name] = Name(self.module, owner, name, parameters)

    def _add_import(self, name: str, home: str) -> None:
        if _is_public(name):
            self.names.setdefault(("", name), Name(self.module, "", name, home=home))

    def _read_loop(self, loop: ast.For, variable: str) -> None:
        """`for cls in [Base, ...]: cls.attribute = value` gives the classes an attribute."""
        self._add("", variable)
        classes = [n.id for n in ast.walk(loop.iter) if isinstance(n, ast.Name)]
        for node in ast.walk(loop):
            match node:
                case ast.Assign(targets=[ast.Attribute(value=ast.Name(id=target), attr=name)]):
                    for owner in dict.fromkeys(classes) if target == variable else ():
                        self._add(owner, name)

    def _read_class(self, cls: ast.ClassDef) -> None:
        owner = cls.name
        self._add("", owner)
        functions: dict[str, Function] = {}
        for node in cls.body:
            match node:
                case ast.FunctionDef():
                    functions[node.name] = node
                    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
                    self._add_method(owner, node.name, node, static="staticmethod" in decorators)
                case ast.Assign(targets=[ast.Name(id="__slots__")], value=value):
                    for slot in ast.literal_eval(value):
                        self._add(owner, slot)
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Name(id=original)) if (
                    original in functions
                ):
                    self._add_method(owner, name, functions[original])
                case ast.Assign(
                    targets=[ast.Name(id=name)],
                    value=ast.Call(func=ast.Name(id=wrapper), args=[ast.Name(id=original)]),
                ) if original in functions:
                    static = wrapper == "staticmethod"
                    self._add_method(owner, name, functions[original], static=static)
                case ast.Assign():
                    for name in _gen_assigned(node):
                        self._add(owner, name)
        constructor = functions.get("__init__")
        if constructor is not None:
            parameters = _read_parameters(constructor, skip=1)
            self.names["", owner] = replace(self.names["", owner], parameters=parameters)
        self.names.pop((owner, "__init__"), None)  # the class is what is called
        for function in functions.values():
            for name in _gen_given_attributes(function):
                if (owner, name) not in self.names:
                    self._add(owner, name)
        for base in map(ast.unparse, cls.bases):
            for name in [name for class_name, name in self.names if class_name == base]:
                overriding = self.names.get((owner, name))
                if overriding is not None and overriding.parameters is None:
                    del self.names[owner, name]

    def _add_method(
        self, owner: str, name: str, function: Function, *, static: bool = False
    ) -> None:
        self._add(owner, name, _read_parameters(function, skip=0 if static else 1))


def _gen_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those under `if` and `try` among them."""
    for node in body:
        if isinstance(node, ast.If):
            first = _FIRST_BRANCH.get(ast.unparse(node.test))
            if first is not False:
                yield from _gen_statements(node.body)
            if first is not True:
                yield from _gen_statements(node.orelse)
        elif isinstance(node, ast.Try):
            handlers = [statement for handler in node.handlers for statement in handler.body]
            yield from _gen_statements([*node.body, *handlers, *node.orelse, *node.finalbody])
        else:
            yield node


def _gen_assigned(node: ast.Assign) -> Iterator[str]:
    for target in node.targets:
        yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))


def _gen_given_attributes(method: Function) -> Iterator[str]:
    """The names of the attributes that a method assigns to its first argument."""
    if not method.args.args:
        return
    self = method.args.args[0].arg
    for node in ast.walk(method):
        match node:
            case ast.Attribute(value=ast.Name(id=target), attr=name, ctx=ast.Store()):
                if target == self:
                    yield name


def _read_parameters(function: Function, skip: int = 0) -> Parameters:
    arguments = function.args
    positional = [argument.arg for argument in [*arguments.posonlyargs, *arguments.args]]
    optional = positional[len(positional) - len(arguments.defaults) :]
    return Parameters(
        tuple(positional[skip:]),
        frozenset(optional),
        arguments.vararg is not None,
        arguments.kwarg is not None,
    )


def _find_options(tree: ast.Module) -> list[Name]:
    """The options of the command: `durus -s`, and of each its own."""
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    names: list[Name] = []
    for branch in ast.walk(functions["main"]):
        match branch:
            case ast.If(
                test=ast.Compare(comparators=[ast.Constant(value=str(option))]),
                body=[ast.Expr(value=ast.Call(func=ast.Name(id=function)))],
            ):
                names.append(Name(COMMAND_LINE, "durus", option))
                for node in ast.walk(functions[function]):
                    match node:
                        case ast.Call(
                            func=ast.Attribute(attr="add_option"),
                            args=[ast.Constant(value=str(name)), *_],
                        ):
                            names.append(Name(COMMAND_LINE, f"durus {option}", name))
    return names
