"""Names of kernels: from mangled to what a table shows, the same for GPUs and the host model."""
import itertools
import re
import subprocess


def demangle(names):
    """{mangled: demangled} of C++ names."""
    names = sorted(set(names))
    if not names:
        return {}
    text = subprocess.run(["c++filt"], input="\n".join(names), text=True, check=True,
                          stdout=subprocess.PIPE).stdout
    return dict(zip(names, text.splitlines(), strict=True))


def split(demangled):
    """("void f_kernel<Add<float, 4>>", "(long, Add<..>)") of a function's name: the namespaces
    tessera, gpu and simt and anonymous ones are left out. What is inside of a function, a lambda
    for example, has more behind its parameters."""
    text = demangled.replace("(anonymous namespace)::", "").replace("> >", ">>").replace("> >", ">>")
    text = re.sub(r"\btessera::((gpu|simt)::)?", "", text)
    # The name ends where its parameters begin: at the first "(" outside of template arguments.
    depth = 0
    for end, c in enumerate(text):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            return text[:end], text[end:]
    return text, ""


def short_name(demangled):
    """elementwise_kernel<Add<float, 4>> of
    void tessera::gpu::elementwise_kernel<tessera::gpu::(anonymous namespace)::Add<...> >(long, ...)
    """
    text = split(demangled)[0]
    # The type of the result, which only templates show, ends at the last space outside of them.
    depth, start = 0, 0
    for i, c in enumerate(text):
        depth += (c == "<") - (c == ">")
        if c == " " and depth == 0:
            start = i + 1
    return text[start:]


def is_kernel(demangled):
    """Kernels are functions named ..._kernel, or templates of that name, in any namespace."""
    parameters = split(demangled)[1]
    closed = list(itertools.accumulate((c == "(") - (c == ")") for c in parameters))
    return (re.fullmatch(r"(\w+::)*\w+_kernel(<.*>)?", short_name(demangled)) is not None
            and 0 not in closed[:-1])
