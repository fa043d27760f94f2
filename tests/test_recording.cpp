// Work that is recorded and issued again: the same results as work that is issued each time, from
// memory that nobody else gets meanwhile.
#include "core/recording.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <span>
#include <thread>

#include "core/pinned_buffer.h"
#include "core/simt/runtime.h"
#include "kernels/adam.h"
#include "tests/cuda_devices.h"
#include "tests/recorded_work.h"
#include "tests/temp_dir.h"

using namespace tessera;

namespace {

void set(Stream& stream, Tensor& x, float value) {
  const std::vector<float> values(size_t(x.numel()), value);
  x.copy_from(stream, std::as_bytes(std::span(values)));
}

// What work makes when it is first done on a stream, and the stream keeps.
struct Workspace {
  explicit Workspace(Stream& stream) : memory(Tensor::empty(stream, {kSize})) {}
  Tensor memory;
};

}  // namespace

TEST_CASE("recorded work reads what is there when it is issued", "[recording][cuda]") {
  on_all_devices([](Stream& stream) {
    Tensor x = Tensor::empty(stream, {kSize}), y = Tensor::empty(stream, {kSize});
    Recording recording(stream);
    int calls = 0;
    for (float value : {1.0f, 2.0f, 3.0f, 4.0f}) {
      set(stream, x, value);
      recording.run([&] {
        ++calls;
        quadruple(stream, x, y);
      });
      CHECK(y.to_vector<float>(stream) == all(4 * value));
    }
    CHECK(calls == (stream.device().runtime().can_record() ? 2 : 4));
  });
}

TEST_CASE("other threads compute while one records", "[cuda]") {
  on_cuda_devices([](Stream& stream) {
    Tensor x = Tensor::empty(stream, {kSize}), y = Tensor::empty(stream, {kSize});
    set(stream, x, 1);
    std::shared_ptr<Buffer> block = stream.device().pool()->allocate_once(1 << 20);
    Stream second(stream.device_ptr());
    std::vector<float> theirs;
    Recording recording(stream);
    for (const bool recorded : {false, true})
      recording.run([&] {
        quadruple(stream, x, y);
        if (recorded)
          std::thread([&] {
            block.reset();  // to the system
            Tensor a = Tensor::empty(second, {3 * kSize}), b = Tensor::empty(second, {3 * kSize});
            const PinnedBuffer staged(second.device_ptr(), 12 * kSize);
            std::ranges::fill(std::span(reinterpret_cast<float*>(staged.bytes().data()), 3 * kSize),
                              2.0f);
            staged.copy_to(second, a);
            quadruple(second, a, b);
            theirs = b.to_vector<float>(second);
          }).join();
      });
    CHECK(theirs == std::vector<float>(3 * kSize, 8));
    CHECK(y.to_vector<float>(stream) == all(4));
    set(stream, x, 3);
    recording.run([] { FAIL("it is recorded"); });
    CHECK(y.to_vector<float>(stream) == all(12));
  });
}

TEST_CASE("a recording's memory is nobody else's, and is kept", "[recording][cuda]") {
  on_cuda_devices([](Stream& stream) {
    Tensor x = Tensor::empty(stream, {kSize}), y = Tensor::empty(stream, {kSize});
    const auto pool = stream.device().pool();
    {
      Recording recording(stream);
      const auto run = [&] { recording.run([&] { quadruple(stream, x, y); }); };
      set(stream, x, 1);
      run();
      run();
      // Tensors of the temporary one's size, in use while the work is issued again.
      std::vector<Tensor> others;
      for (int i = 0; i < 4; ++i) {
        others.push_back(Tensor::empty(stream, {kSize}));
        set(stream, others.back(), 7);
      }
      pool->trim();
      const int64_t misses = pool->misses();
      set(stream, x, 2);
      run();
      CHECK(y.to_vector<float>(stream) == all(8));
      for (const Tensor& other : others) CHECK(other.to_vector<float>(stream) == all(7));
      CHECK(pool->misses() == misses);
      run();  // is queued when the recording ends
    }
    Tensor z = Tensor::zeros(stream, {kSize});
    CHECK(y.to_vector<float>(stream) == all(8));
    CHECK(z.to_vector<float>(stream) == all(0));
  });
}

TEST_CASE("temporary tensors share a block, results have memory of their own",
          "[recording][cuda]") {
  on_cuda_devices([](Stream& stream) {
    const Pool& pool = *stream.device().pool();
    Tensor x = Tensor::empty(stream, {kSize}), first, last;
    Recording recording(stream);
    const size_t before = pool.bytes_in_use();
    for (float value : {1.0f, 2.0f, 3.0f}) {
      set(stream, x, value);
      recording.run([&] {
        stream.state<Workspace>();
        Tensor sum = Tensor::empty(stream, {kSize});
        add_fwd(stream, x, x, sum);
        first = sum;  // 2 x
        for (int i = 0; i < 4; ++i) {
          Tensor next = Tensor::empty(stream, {kSize});
          add_fwd(stream, sum, x, next);
          sum = next;
        }
        last = sum;  // 6 x
      });
      CHECK(first.to_vector<float>(stream) == all(2 * value));
      CHECK(last.to_vector<float>(stream) == all(6 * value));
    }
    // 4000 bytes each: two results, and two at once of the three between. The pool's class for the
    // workspace is as large.
    CHECK(pool.bytes_in_use() - before == 4 * 4096 + 4096);
  });
}

TEST_CASE("work that cannot be recorded says so, and the stream goes on", "[recording][simt]") {
  Stream stream(poisoned(DeviceType::simt));
  Tensor x = Tensor::empty(stream, {kSize}), y = Tensor::empty(stream, {kSize});
  set(stream, x, 1);
  {
    Recording recording(stream);
    int64_t size = kSize;
    const auto run = [&] { recording.run([&] { Tensor::zeros(stream, {size *= 3}); }); };
    run();
    const std::string message = message_of<Error>(run);
    CHECK_THAT(message, Catch::StartsWith("recorded work asks for 36000 bytes in request 1, the "
                                          "first time for 12000"));
  }
  {
    Recording recording(stream);
    bool fails = false;
    const auto run = [&] {
      recording.run([&] {
        if (fails) throw InputError("stop");
        quadruple(stream, x, y);
      });
    };
    run();
    fails = true;
    CHECK_THROWS_AS(run(), InputError);
    fails = false;
    run();
  }
  {
    Stream other(stream.device_ptr());
    Recording recording(stream);
    Tensor z = Tensor::empty(stream, {kSize});
    const auto run = [&] {
      recording.run([&] {
        stream.device().runtime().wait_for(other.native(), stream.native());
        z.zero(other);
      });
    };
    run();
    CHECK_THAT(message_of<Error>(run), Catch::Contains("unjoined"));
  }
  set(stream, y, 0);
  quadruple(stream, x, y);
  CHECK(y.to_vector<float>(stream) == all(4));
}

TEST_CASE("Adam and a batch by numbers on the device", "[recording][adam][noise][cuda]") {
  on_all_devices([](Stream& stream) {
    const auto update = [&](bool on_device) {
      AdamSpec spec;
      spec.lr = 0.01;
      AdamTensors t;
      t.grads = tensor_of(stream, normal("g", {37}), DType::f32);
      for (Tensor* x : {&t.params, &t.m, &t.v}) *x = Tensor::zeros(stream, {37});
      if (on_device) {
        t.now = Tensor::from<int64_t>(stream, {1}, std::array{int64_t{3}});
        t.factors = Tensor::from<float>(stream, {8}, adam_factors(spec, 3));
      }
      adam_step(stream, spec, on_device ? 1 : 3, t);
      return t.params.to_vector<float>(stream);
    };
    CHECK(update(true) == update(false));

    const auto batch = [&](uint32_t epoch, const Tensor& there) {
      const Shape shape{2, 4, 4, 1};
      const Tensor images = Tensor::zeros(stream, shape, DType::u8);
      const Tensor rows = Tensor::from<int64_t>(stream, {2}, std::array<int64_t, 2>{1, 0});
      Tensor t = Tensor::empty(stream, {2}, DType::i32), clean = Tensor::empty(stream, shape),
             noisy = Tensor::empty(stream, shape);
      make_batch(stream, {5, epoch}, images, rows, rows, there, t, clean, noisy);
      return noisy.to_vector<float>(stream);
    };
    const Tensor third = Tensor::from<int64_t>(stream, {1}, std::array{int64_t{3}});
    CHECK(batch(0, third) == batch(3, {}));
    CHECK(batch(0, {}) != batch(3, {}));
  });
}

TEST_CASE("recorded work that asks for less is an error", "[recording]") {
  Stream stream(Device::open(DeviceType::simt, 1));
  Recording recording(stream);
  int calls = 0;
  const auto work = [&] {
    Tensor a = Tensor::zeros(stream, {100});
    if (++calls == 1) Tensor::zeros(stream, {200});
  };
  recording.run(work);
  CHECK_THAT(message_of<Error>([&] { recording.run(work); }),
             Catch::Contains("recorded work makes 1 requests for memory, 2 the first time"));
}

TEST_CASE("a recording's block takes the place of what was cached", "[recording]") {
  Stream stream(Device::open(DeviceType::simt, 1));
  Recording recording(stream);
  const auto work = [&] {
    Tensor a = Tensor::zeros(stream, {1 << 18}), b = Tensor::zeros(stream, {1 << 18});
  };
  recording.run(work);
  const size_t before = simt::memory_use().bytes;
  recording.run(work);
  CHECK(simt::memory_use().bytes <= before + 4096);
}
