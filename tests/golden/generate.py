#!/usr/bin/env python3
"""Writes golden files with PyTorch: every operation both ways, and whole U-Net training runs.

Without options it rewrites the committed files of tests/golden/data, byte for byte. With options
(--base 32 --size 32 --levels 3 --seed 7 --out DIR) it writes one U-Net of those options, and the
operations, into DIR; TESSERA_GOLDEN_DIR=DIR makes the tests read that folder instead.
README.md beside this file describes the format. Needs python3-torch and numpy.
"""
import argparse
import copy
import pathlib
import sys
import zlib

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.stateless import functional_call

import safetensors_io
import unet_reference as twin

COMMITTED = pathlib.Path(__file__).resolve().parent / "data"
ADAM = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
UNET_DEFAULTS = {"channels": 1, "base": 16, "levels": 2, "size": 16, "groups": 8, "time_dim": 16,
                 "batch": 3, "steps": 10, "activation": "gelu"}
# The variants of the network: the default of each choice first. Files say what is not the default.
UNET_CHOICES = {"down": ["rearrange", "conv", "max", "avg"], "up": ["nearest", "transposed"],
                "norm": ["group", "batch", "layer", "instance"], "no_skips": [False, True],
                "no_time_gelu": [False, True]}
SMALL = {"channels": 1, "base": 8, "levels": 1, "size": 8, "groups": 4, "time_dim": 8, "batch": 4,
         "steps": 4, "activation": "gelu"}
COMMITTED_UNETS = [
    UNET_DEFAULTS,
    {"channels": 3, "base": 16, "levels": 1, "size": 12, "groups": 4, "time_dim": 8, "batch": 2,
     "steps": 10, "activation": "gelu-tanh"},
    {**SMALL, "size": 16, "activation": "relu"},
    *({**SMALL, name: value} for name, values in UNET_CHOICES.items() for value in values[1:]
      if value not in ("max", "instance")),
    {**SMALL, "size": 16, "down": "max"},
    {**SMALL, "size": 16, "norm": "instance"},
    {**SMALL, "levels": 2, "size": 16, "down": "avg", "up": "transposed", "norm": "batch",
     "no_skips": True, "no_time_gelu": True},
    {**SMALL, "levels": 2, "size": 16, "channels": 3, "activation": "gelu-tanh", "down": "conv",
     "up": "transposed", "norm": "instance", "no_time_gelu": True},
]


class Writer:
    """What every case needs: the folder, the seed and the type to compute in."""

    def __init__(self, folder, seed, dtype):
        self.folder, self.seed, self.dtype = pathlib.Path(folder), seed, dtype

    def rng(self, name):
        """Each file has its own numbers, so that a new case leaves the others as they are."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def tensor(self, array):
        """A leaf in the computing type, from the float32 values that the file holds."""
        array = np.asarray(array)
        if np.issubdtype(array.dtype, np.integer):
            return torch.from_numpy(array)
        return torch.from_numpy(array.astype(np.float32)).to(self.dtype).requires_grad_()

    def save(self, name, tensors, metadata):
        path = self.folder / (name + ".safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors_io.save(path, {key: stored(value) for key, value in tensors.items()}, metadata)

    def case(self, op, case, function, inputs, more=dict, **attributes):
        """One operation: y = function(**inputs), and the gradient d<name> of every float input.

        `inputs` maps names to arrays, or to shapes that are filled with normal numbers; more() is
        what else the file holds.
        """
        name = f"ops/{op}_{case}"
        rng = self.rng(name)
        leaves = {key: self.tensor(rng.standard_normal(value) if isinstance(value, tuple) else value)
                  for key, value in inputs.items()}
        y = function(**leaves)
        tensors = {**leaves, "y": y}
        if y.requires_grad:
            dy = self.tensor(rng.standard_normal(y.shape)).detach() if y.dim() else None
            y.backward(dy)
            tensors.update({"d" + key: leaf.grad for key, leaf in leaves.items()
                            if leaf.grad is not None})
            if dy is not None:
                tensors["dy"] = dy
        self.save(name, {**tensors, **more()}, {"op": op, **attributes})


def stored(value):
    """float64 results are kept as float32; numpy arrays as they come."""
    if isinstance(value, np.ndarray):
        return value
    array = value.detach().numpy()
    return array.astype(np.float32) if np.issubdtype(array.dtype, np.floating) else array


def write_convolutions(out):
    cases = {  # name: (N, C, H, W), (K, C, R, S), stride, padding
        "3x3_pad1": ((2, 8, 6, 10), (16, 8, 3, 3), 1, 1),
        "3x3_odd": ((2, 3, 7, 5), (7, 3, 3, 3), 1, 1),
        "3x3_20_channels": ((1, 20, 9, 9), (20, 20, 3, 3), 1, 1),
        "3x3_one_pixel": ((3, 7, 1, 1), (3, 7, 3, 3), 1, 1),
        "3x3_pad0": ((1, 5, 6, 5), (8, 5, 3, 3), 1, 0),
        "1x1": ((2, 7, 5, 6), (20, 7, 1, 1), 1, 0),
        "1x1_to_one": ((2, 16, 4, 4), (1, 16, 1, 1), 1, 0),
        "2x2_stride2": ((2, 4, 8, 6), (8, 4, 2, 2), 2, 0),
        "2x2_stride2_odd": ((1, 3, 7, 5), (7, 3, 2, 2), 2, 0),
        "3x3_stride2_pad1": ((2, 8, 8, 6), (16, 8, 3, 3), 2, 1),
        "3x3_stride2_pad1_odd": ((1, 7, 9, 7), (3, 7, 3, 3), 2, 1),
        "5x3_pad2": ((1, 3, 7, 6), (20, 3, 5, 3), 1, 2),
    }
    for case, (image, kernel, stride, padding) in cases.items():
        out.case("conv2d", case,
                 lambda x, w, b: F.conv2d(x, w, b, stride=stride, padding=padding),
                 {"x": image, "w": kernel, "b": (kernel[0],)}, stride=stride, padding=padding)


def write_pointwise(out):
    for case, (n, inputs, outputs) in {"16_to_32": (4, 16, 32), "odd": (3, 7, 5),
                                       "one_row": (1, 20, 1)}.items():
        out.case("linear", case, lambda x, w, b: F.linear(x, w, b),
                 {"x": (n, inputs), "w": (outputs, inputs), "b": (outputs,)})
    wide = np.linspace(-9, 9, 257)
    for form, approximate in {"exact": "none", "tanh": "tanh"}.items():
        apply = lambda x: F.gelu(x, approximate=approximate)
        out.case("gelu", form, apply, {"x": (2, 5, 7, 3)}, form=form)
        out.case("gelu", form + "_wide", apply, {"x": wide}, form=form)
    out.case("relu", "plain", lambda x: F.relu(x), {"x": (2, 5, 7, 3)})
    out.case("relu", "wide", lambda x: F.relu(x), {"x": wide})  # with 0 itself
    add = lambda x, t: x + t[:, :, None, None]
    out.case("add_broadcast", "even", add, {"x": (2, 8, 6, 4), "t": (2, 8)})
    out.case("add_broadcast", "odd", add, {"x": (3, 7, 5, 1), "t": (3, 7)})
    for case, shape in {"grey": (3, 1, 6, 6), "odd": (2, 3, 5, 7)}.items():
        out.case("mse", case, lambda x, target: F.mse_loss(x, target.detach()),
                 {"x": shape, "target": shape})


def write_rearrangements(out):
    spec = np.array([list("abef"), list("cdgh"), list("ijmn"), list("klop")])
    letters = np.vectorize(ord)(spec).astype(np.float32).reshape(1, 1, 4, 4)
    out.case("space_to_channel", "letters", twin.space_to_channel, {"x": letters})
    out.case("space_to_channel", "odd", twin.space_to_channel, {"x": (2, 3, 6, 10)})
    out.case("channel_to_space", "odd", twin.channel_to_space, {"x": (2, 12, 3, 5)})
    double = lambda x: F.interpolate(x, scale_factor=2, mode="nearest")
    out.case("upsample_nearest", "even", double, {"x": (2, 8, 4, 6)}, factor=2)
    out.case("upsample_nearest", "odd", double, {"x": (1, 7, 3, 5)}, factor=2)
    join = lambda a, b: torch.cat([a, b], dim=1)
    out.case("concat_channels", "even", join, {"a": (2, 8, 4, 4), "b": (2, 16, 4, 4)})
    out.case("concat_channels", "odd", join, {"a": (2, 3, 5, 3), "b": (2, 7, 5, 3)})
    for dim in (2, 16, 128):
        t = np.array([0, 1, 2, 250, 500, 750, 999], dtype=np.int64)
        out.case("timestep_embedding", f"dim{dim}",
                 lambda t: twin.timestep_embedding(t, dim, out.dtype), {"t": t}, dim=dim)


def write_poolings(out):
    for case, shape in {"even": (2, 8, 4, 6), "odd": (1, 7, 6, 10)}.items():
        out.case("max_pool", case, lambda x: F.max_pool2d(x, 2), {"x": shape})
        out.case("average_pool", case, lambda x: F.avg_pool2d(x, 2), {"x": shape})
    # Few values, so that most patches have their largest one more than once.
    ties = np.maximum(out.rng("ties").integers(-2, 3, (2, 3, 8, 6)), 0).astype(np.float32)
    out.case("max_pool", "ties", lambda x: F.max_pool2d(x, 2), {"x": ties})
    for case, (image, outputs) in {"even": ((2, 16, 4, 3), 8), "odd": ((1, 7, 3, 5), 3),
                                   "one_pixel": ((3, 5, 1, 1), 4)}.items():
        out.case("conv_transpose2d", case, lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2),
                 {"x": image, "w": (image[1], outputs, 2, 2), "b": (outputs,)})


def write_norms(out):
    eps = 1e-5
    for case, (shape, training) in {"training": ((3, 16, 4, 6), True), "odd": ((2, 7, 5, 3), True),
                                    "evaluation": ((2, 16, 4, 6), False)}.items():
        # As after some steps: running statistics from before, and what they are after this one.
        rng = out.rng("batch_norm_statistics_" + case)
        before = {"mean": rng.standard_normal(shape[1]), "var": rng.uniform(0.5, 2, shape[1])}
        after = {key: out.tensor(value).detach() for key, value in before.items()}
        before = {key: value.clone() for key, value in after.items()}
        x = out.rng(case).standard_normal(shape) * 2 + 1

        def norm(x, gamma, beta):
            with torch.set_grad_enabled(training):
                return F.batch_norm(x, after["mean"], after["var"], gamma, beta, training=training,
                                    momentum=0.1, eps=eps)
        out.case("batch_norm", case, norm, {"x": x, "gamma": shape[1:2], "beta": shape[1:2]},
                 lambda: {**before, "mean_after": after["mean"], "var_after": after["var"]},
                 training=int(training), eps=eps)
    for case, (shape, groups) in {"8_groups": ((2, 16, 4, 6), 8), "odd": ((3, 21, 5, 3), 7),
                                  "one_group": ((2, 20, 3, 3), 1), "instance": ((2, 6, 4, 4), 6),
                                  "offset": ((2, 16, 8, 8), 4)}.items():
        # "offset": a mean far from 0, where E[x^2] - E[x]^2 loses its digits.
        x = out.rng(case).standard_normal(shape) + 100 if case == "offset" else shape
        out.case("group_norm", case,
                 lambda x, gamma, beta: F.group_norm(x, groups, gamma, beta, eps),
                 {"x": x, "gamma": shape[1:2], "beta": shape[1:2]}, groups=groups, eps=eps)

    for case, (shape, groups, form, residual) in {
            "exact": ((2, 16, 4, 6), 8, "exact", False),
            "exact_residual": ((2, 16, 4, 6), 8, "exact", True),
            "tanh_odd": ((3, 21, 5, 3), 7, "tanh", False),
            "tanh_residual_odd": ((3, 21, 5, 3), 7, "tanh", True)}.items():
        def fused(x, gamma, beta, t, r=0.0):
            h = F.group_norm(x, groups, gamma, beta, eps) + t[:, :, None, None]
            return F.gelu(h, approximate={"exact": "none", "tanh": "tanh"}[form]) + r
        inputs = {"x": shape, "gamma": shape[1:2], "beta": shape[1:2], "t": shape[:2]}
        if residual:
            inputs["r"] = shape
        out.case("group_norm_time_gelu", case, fused, inputs, groups=groups, eps=eps, form=form)


def write_residual_blocks(out):
    for case, (inputs, outputs, activation) in {"same": (16, 16, "gelu"),
                                                "wider": (12, 16, "gelu"),
                                                "tanh": (20, 8, "gelu-tanh")}.items():
        groups, emb = 4, 12
        torch.manual_seed(out.seed)
        block = twin.ResidualBlock(inputs, outputs, emb, groups, activation).to(out.dtype)
        perturb_norms(block, out.rng(case))

        def apply(x, emb, **parameters):
            return functional_call(block, parameters, (x, emb))
        parameters = {key: value.detach().numpy() for key, value in block.named_parameters()}
        out.case("residual_block", case, apply,
                 {"x": (2, inputs, 6, 4), "emb": (2, emb), **parameters},
                 groups=groups, eps=1e-5, form={"gelu": "exact", "gelu-tanh": "tanh"}[activation])


def write_adam(out):
    """p, m, v [n] before, gradients g [K, n]; y, ym, yv [K, n] are p, m, v after each step."""
    count, steps = 37, 5
    for case, (weight_decay, max_norm, first_step) in {
            "plain": (0.0, 0.0, 1), "adamw": (0.01, 0.0, 1), "clip": (0.0, 1.0, 1),
            "adamw_clip_resumed": (0.01, 1.0, 6)}.items():
        rng = out.rng(case)
        # From 1e-9 of the norm (where eps matters) to all of it; steps 2 and 3 are not clipped.
        scale = 10.0 ** rng.uniform(-9, 0, count)
        g = rng.standard_normal((steps, count)) * scale
        g *= np.array([2.0, 0.5, 0.02, 1.2, 3.0])[:, None] / np.linalg.norm(g, axis=1)[:, None]
        g = out.tensor(g).detach()
        state = [np.zeros(count), np.zeros(count)]
        if first_step > 1:
            state = [rng.standard_normal(count) * scale * 0.3, (scale * rng.uniform(0, .1, count))**2]
        before = {"p": out.tensor(rng.standard_normal(count)), "m": out.tensor(state[0]).detach(),
                  "v": out.tensor(state[1]).detach()}
        after = adam_steps(before, g, weight_decay, max_norm, first_step)
        out.save(f"ops/adam_{case}", {**before, "g": g, **after},
                 {"op": "adam", **ADAM, "weight_decay": weight_decay, "max_norm": max_norm,
                  "first_step": first_step})


def adam_steps(before, gradients, weight_decay, max_norm, first_step):
    p = before["p"].detach().clone().requires_grad_()
    optimizer = torch.optim.AdamW([p], lr=ADAM["lr"], betas=(ADAM["beta1"], ADAM["beta2"]),
                                  eps=ADAM["eps"], weight_decay=weight_decay)
    if first_step > 1:
        optimizer.state[p] = {"step": torch.tensor(first_step - 1.0),
                              "exp_avg": before["m"].clone(), "exp_avg_sq": before["v"].clone()}
    rows = {"y": [], "ym": [], "yv": []}
    for g in gradients:
        p.grad = g.clone()
        if max_norm > 0:
            torch.nn.utils.clip_grad_norm_([p], max_norm)
        optimizer.step()
        state = optimizer.state[p]
        for key, value in zip(rows, (p, state["exp_avg"], state["exp_avg_sq"])):
            rows[key].append(value.detach().clone())
    return {key: torch.stack(values) for key, values in rows.items()}


def perturb_norms(module, rng):
    """A norm starts at 1 and 0, which would hide a forgotten gamma or beta."""
    for part in module.modules():
        if isinstance(part, (torch.nn.GroupNorm, torch.nn.BatchNorm2d)):
            for parameter, start in ((part.weight, 1.0), (part.bias, 0.0)):
                values = (start + 0.2 * rng.standard_normal(parameter.shape)).astype(np.float32)
                parameter.data.copy_(torch.from_numpy(values))


def make_batch(rng, options):
    """Smooth images in [-1, 1], (noisy, t) as in training: noisy = x + t/1000 * 0.5 * normal."""
    n, channels, size = options["batch"], options["channels"], options["size"]
    grid = np.linspace(0, 2 * np.pi, size, endpoint=False)
    waves = rng.integers(1, 4, (2, n, channels, 1, 1))
    phases = rng.uniform(0, 2 * np.pi, (2, n, channels, 1, 1))
    clean = np.sin(waves[0] * grid[:, None] + phases[0]) * np.cos(waves[1] * grid + phases[1])
    t = rng.integers(0, 1000, n)
    sigma = (t / 1000 * 0.5)[:, None, None, None]
    noisy = clean + sigma * rng.standard_normal(clean.shape)
    return clean.astype(np.float32), noisy.astype(np.float32), t.astype(np.int64)


def backward(model, clean, noisy, t):
    """One forward and backward; returns output, loss and the names of gradients that are zero."""
    dtype = next(model.parameters()).dtype
    model.zero_grad()
    prediction = model(torch.from_numpy(noisy).to(dtype), torch.from_numpy(t))
    loss = F.mse_loss(prediction, torch.from_numpy(clean).to(dtype))
    loss.backward()
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    total = sum(norm**2 for norm in norms.values()) ** 0.5
    return prediction, loss, {name for name, norm in norms.items() if norm < 1e-7 * total}


def train(model, batches, adam):
    """Adam over the batches; returns the losses and the names whose gradient was ever zero."""
    optimizer = torch.optim.Adam(model.parameters(), lr=adam["lr"],
                                 betas=(adam["beta1"], adam["beta2"]), eps=adam["eps"])
    losses, zero = [], set()
    for batch in batches:
        _, loss, zero_now = backward(model, *batch)
        optimizer.step()
        losses.append(loss.item())
        zero |= zero_now
    return losses, zero


def is_variant(options):
    return options["activation"] == "relu" or any(key in options for key in UNET_CHOICES)


def unet_name(options):
    """With the variants at the end: _relu_down-max_no-skips."""
    name = "c{channels}_b{base}_l{levels}_s{size}_g{groups}_t{time_dim}".format(**options)
    name += "_relu" if options["activation"] == "relu" else ""
    for key in UNET_CHOICES:
        value = options.get(key, False)
        name += f"_{key}-{value}" if isinstance(value, str) else f"_{key}" if value else ""
    return name.replace("no_", "no-").replace("time_gelu", "time-gelu")


def write_unet(out, options):
    name = "unet/" + unet_name(options)
    rng = out.rng(name)
    torch.manual_seed(out.seed)
    model = twin.UNet(options["channels"], options["base"], options["levels"], options["groups"],
                      options["time_dim"], options["activation"],
                      **{key: options[key] for key in UNET_CHOICES if key in options})
    perturb_norms(model, rng)
    exact = copy.deepcopy(model).double()  # decides which gradients are zero, whatever the dtype
    model.to(out.dtype)

    start = copy.deepcopy(model.state_dict())  # with BatchNorm's running statistics
    tensors = {"param." + key: value for key, value in start.items()}
    single = make_batch(rng, options)
    prediction, loss, _ = backward(model, *single)
    tensors.update(zip(("x", "noisy", "t"), single))
    tensors.update({"out": prediction, "loss": np.array(loss.item())})
    tensors.update({"grad." + key: value.grad.clone() for key, value in model.named_parameters()})

    model.load_state_dict(start)
    # The first steps of Adam go by the signs of gradients, and in bf16 those of small ones are
    # noise. The networks of the usual eps show that; variants are compared with less of it.
    adam = {**ADAM, "lr": 1e-3, "eps": 1e-2} if is_variant(options) else ADAM
    batches = [make_batch(rng, options) for _ in range(options["steps"])]
    tensors.update(zip(("step.clean", "step.noisy", "step.t"), map(np.stack, zip(*batches))))
    tensors["losses"] = np.array(train(model, batches, adam)[0])
    tensors.update({"after." + key: value for key, value in model.state_dict().items()})
    if options.get("norm") == "batch":
        model.eval()
        tensors["eval.out"] = model(torch.from_numpy(single[1]).to(out.dtype),
                                    torch.from_numpy(single[2]))
    zero = backward(exact, *single)[2] | train(exact, batches, adam)[1]
    said = {key: str(value).lower() if value is True else value for key, value in options.items()}
    out.save(name, tensors, {**said, **adam, "seed": out.seed, "eps_norm": 1e-5,
                             "dtype": str(out.dtype), "zero_grad": ",".join(sorted(zero))})


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", default=COMMITTED, metavar="DIR",
                        help="default: the committed folder, tests/golden/data")
    parser.add_argument("--seed", type=int, default=1)
    for option, default in UNET_DEFAULTS.items():
        if option != "activation":
            parser.add_argument("--" + option.replace("_", "-"), type=int,
                                help=f"of the one U-Net; default {default}")
    parser.add_argument("--activation", choices=["gelu", "gelu-tanh", "relu"])
    for option, (default, *others) in UNET_CHOICES.items():
        flag = "--" + option.replace("_", "-")
        if default is False:
            parser.add_argument(flag, action="store_const", const=True)
        else:
            parser.add_argument(flag, choices=others)
    parser.add_argument("--dtype", choices=["f64", "f32"], default="f64",
                        help="to compute in (files hold f32)")
    parser.add_argument("--only", choices=["ops", "unet"])
    args = parser.parse_args()
    given = {key: value for key in [*UNET_DEFAULTS, *UNET_CHOICES]
             if (value := getattr(args, key)) is not None}
    options = {**UNET_DEFAULTS, **given}
    if pathlib.Path(args.out).resolve() == COMMITTED and (
            given or args.only or args.dtype != "f64" or args.seed != 1):
        parser.error("options change the goldens: give --out DIR (not the committed folder) too")
    if any(options[key] < 1 for key in UNET_DEFAULTS if key != "activation"):
        parser.error("every number must be at least 1")
    if options["size"] % 2 ** options["levels"]:
        parser.error(f"--size {options['size']} is not a multiple of 2^levels")
    if options["base"] % options["groups"] or options["time_dim"] % 2:
        parser.error("--base must be a multiple of --groups, --time-dim even")
    return args, [options] if given else COMMITTED_UNETS


def main():
    args, unets = parse_arguments()
    torch.set_num_threads(1)  # one order of summation, so the same bytes everywhere
    out = Writer(args.out, args.seed, {"f64": torch.float64, "f32": torch.float32}[args.dtype])
    if args.only != "unet":
        for write in (write_convolutions, write_pointwise, write_rearrangements, write_poolings,
                      write_norms, write_residual_blocks, write_adam):
            write(out)
    if args.only != "ops":
        for options in unets:
            write_unet(out, options)
    files = sorted(out.folder.rglob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    print(f"{out.folder}: {len(files)} files, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    sys.exit(main())
