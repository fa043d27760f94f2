// Parameters that lie next to each other and are read as one, and the layers made of them.
#include <catch2/catch.hpp>
#include <limits>

#include "layers/module.h"
#include "tests/op_runner.h"

using namespace tessera;

namespace {

const Parameter& parameter(const Parameters& parameters, const std::string& name) {
  for (const Parameter& p : parameters.list())
    if (p.name == name) return p;
  throw Error("no parameter " + name);
}

// Layers a, 2 -> 3, and b, 2 -> 2.
struct Stacked {
  Stream stream{poisoned_cpu()};
  Parameters parameters;
  LinearStack stack{Scope(parameters) / "stack", 2};

  Stacked() {
    stack.add(Scope(parameters) / "a", 3);
    stack.add(Scope(parameters) / "b", 2);
    parameters.allocate(stream, Precision::f32(), 1);
    parameters.prepare_training(stream);
  }
  Var input() { return Var::leaf(Tensor::zeros(stream, {1, 2})); }
};

}  // namespace

TEST_CASE("linear layers in a stack are those layers", "[stack]") {
  for (const Precision& precision : {Precision::f32(), Precision::bf16()}) {
    Stream stream(poisoned_cpu());
    // The same parameters in the same order have the same initial values, in a stack or not.
    Parameters apart, together;
    const Linear first(Scope(apart) / "a", 5, 3), between(Scope(apart) / "b", 5, 2),
        last(Scope(apart) / "c", 5, 7);
    LinearStack stack(Scope(together) / "stack", 5);
    CHECK(stack.add(Scope(together) / "a", 3) == 0);
    const Linear other(Scope(together) / "b", 5, 2);
    CHECK(stack.add(Scope(together) / "c", 7) == 1);
    for (Parameters* p : {&apart, &together}) {
      p->allocate(stream, precision, 3);
      p->prepare_training(stream);
      fill(stream, p->grads, std::numeric_limits<double>::quiet_NaN());
    }
    // Then integers, whose products are exact however a CPU orders them.
    for (const char* name : {"a.weight", "a.bias", "b.weight", "b.bias", "c.weight", "c.bias"}) {
      INFO(name);
      Tensor one = parameter(apart, name).master, other = parameter(together, name).master;
      CHECK(values_of(stream, one).data == values_of(stream, other).data);
      const Values integers = draw(Numbers::Integers, name, 0, one.shape());
      for (Tensor* values : {&one, &other}) std::ranges::copy(integers.data, values->data<float>());
    }
    for (Parameters* p : {&apart, &together}) p->refresh_copies(stream);

    const auto input = [&] {
      return Var::leaf(
          tensor_of(stream, draw(Numbers::Integers, "x", 0, {4, 5}), precision.storage), true);
    };
    const Tensor dy =
        tensor_of(stream, draw(Numbers::Integers, "dy", 0, {4, 7}), precision.storage);
    const auto step = [&] {
      const Var x = input(), same = input();
      Tape one(stream), two(stream);
      const Var ya = first.forward(one, x), yc = last.forward(one, x);
      const std::vector<Var> y = stack.forward(two, same);
      REQUIRE(y.size() == 2);
      CHECK(values_of(stream, y[0].value).data == values_of(stream, ya.value).data);
      CHECK(values_of(stream, y[1].value).data == values_of(stream, yc.value).data);
      // One of the outputs has no part in what follows.
      one.backward_from(yc, dy);
      two.backward_from(y[1], dy);
      CHECK(values_of(stream, same.grad()).data == values_of(stream, x.grad()).data);
      for (const char* name : {"c.weight", "c.bias"}) {
        INFO(name);
        CHECK(values_of(stream, parameter(together, name).var.grad()).data ==
              values_of(stream, parameter(apart, name).var.grad()).data);
      }
    };
    step();
    step();  // adds
    for (Parameters* p : {&apart, &together}) p->clear_gradients();
    step();
    together.finish_gradients(stream);
    for (const char* name : {"a.weight", "a.bias", "b.weight", "b.bias"})
      for (const double value : values_of(stream, parameter(together, name).var.slot->grad).data)
        CHECK(value == 0);
  }
}

TEST_CASE("gradients of a stack that nothing has written are zero", "[stack]") {
  Stacked s;
  fill(s.stream, s.parameters.grads, 1);
  s.parameters.finish_gradients(s.stream);
  for (const Parameter& p : s.parameters.list())
    for (const double value : values_of(s.stream, p.var.slot->grad).data) CHECK(value == 0);
}

TEST_CASE("a stack refuses rows of another length", "[stack][errors]") {
  Parameters parameters;
  ParameterStack& stack = parameters.add_stack("stack", {0, 4});
  parameters.add("first", {3, 4}, {}, FileLayout::Same, 0, &stack);
  CHECK(stack.var.slot->shape == Shape{3, 4});
  CHECK_THROWS_WITH(parameters.add("second", {3, 5}, {}, FileLayout::Same, 0, &stack),
                    Catch::Contains("parameter 'second' is [3,5] in a stack [3,4]"));
  CHECK_THROWS_WITH(parameters.add("third", {4}, {}, FileLayout::Same, 0, &stack),
                    Catch::Contains("parameter 'third' is [4] in a stack [3,4]"));
  CHECK(parameters.list().size() == 1);
}

TEST_CASE("a watching tape names the member of a stack that is not finite", "[stack]") {
  Stacked s;
  Tensor w = parameter(s.parameters, "b.weight").master;
  std::vector<float> values = w.to_floats(s.stream);
  values[3] = std::numeric_limits<float>::infinity();
  w.copy_from(s.stream, std::as_bytes(std::span(values)));
  Tape tape(s.stream);
  tape.watch();
  CHECK_THROWS_WITH(s.stack.forward(tape, s.input()),
                    Catch::Contains("'b.weight' [2,2] is not finite at element 3"));
}

TEST_CASE("a stack's gradient does not overwrite that of a member", "[stack][errors]") {
  Stacked s;
  Tape tape(s.stream);
  const Var y = s.stack.forward(tape, s.input()).front();
  (void)parameter(s.parameters, "a.weight").var.slot->out(s.stream);
  CHECK_THROWS_WITH(tape.backward_from(y, Tensor::zeros(s.stream, {1, 3})),
                    Catch::Contains("the gradient of 'a.weight' is there before that of"));
}
