"""Names of kernels: from mangled to what a table shows, the same for GPUs and the host model."""
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


def short_name(demangled):
    """elementwise_kernel<Add<float, 4>> of
    void tessera::gpu::elementwise_kernel<tessera::gpu::(anonymous namespace)::Add<...> >(long, ...)
    """
    text = demangled.replace("(anonymous namespace)::", "").replace("> >", ">>").replace("> >", ">>")
    text = re.sub(r"\btessera::((gpu|simt)::)?", "", text)
    # The name ends where its parameters begin: at the first "(" outside of template arguments.
    depth = 0
    for end, c in enumerate(text):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            text = text[:end]
            break
    # The type of the result, which only templates show, ends at the last space outside of them.
    depth, start = 0, 0
    for i, c in enumerate(text):
        depth += (c == "<") - (c == ">")
        if c == " " and depth == 0:
            start = i + 1
    return text[start:]


def is_kernel(demangled):
    """Kernels are functions named ..._kernel, or templates of that name."""
    return re.fullmatch(r"\w+_kernel(<.*>)?", short_name(demangled)) is not None
