#include "executor/run/calibrated_kernels.hpp"

#include <barrier>
#include <cstring>
#include <memory>
#include <thread>

#include <fmt/format.h>

#include "executor/clock.hpp"
#include "executor/engine/optimizer.hpp"
#include "executor/layers/device.hpp"

namespace shardwright {

namespace {

/// A tensor, filled with something that neither vanishes nor overflows.
class Operand {
public:
    explicit Operand(std::int64_t elements, DType dtype = DType::Fp32)
        : m_memory(static_cast<std::size_t>(bytesOf(elements, dtype).count())), m_elements(elements), m_dtype(dtype)
    {
        if (dtype == DType::Fp32) {
            auto* values = view().as<float>();
            for (std::int64_t i = 0; i < elements; ++i)
                values[i] = 0.01F * static_cast<float>(i % 97) - 0.48F;
        } else {
            std::memset(m_memory.data(), 0x3c, m_memory.size()); // bf16: 0.0115
        }
    }
    TensorView view() { return {m_memory.data(), m_elements, m_dtype}; }
    char* bytes() { return m_memory.data(); }

private:
    std::vector<char> m_memory;
    std::int64_t m_elements;
    DType m_dtype;
};

/// Seconds of a call on every rank at once: prepare() makes a rank's calls. The median over ranks and repetitions,
/// after one that warms up.
class Stopwatch {
public:
    Stopwatch(const CalibrationOptions& options, const std::function<void(const std::string&)>& progress)
        : m_options(options), m_progress(progress)
    {
    }

    template <typename Prepare> double time(const std::string& what, Prepare prepare) const
    {
        if (m_progress)
            m_progress(what);
        std::vector<std::vector<double>> took(static_cast<std::size_t>(m_options.ranks));
        std::barrier together(m_options.ranks);
        std::vector<std::thread> ranks;
        for (std::vector<double>& mine : took)
            ranks.emplace_back([&] {
                auto call = prepare();
                call();
                together.arrive_and_wait();
                const auto begin = Clock::now();
                constexpr std::size_t kFewest = 5;
                while (mine.size() < kFewest || secondsSince(begin) < m_options.seconds) {
                    const auto start = Clock::now();
                    call();
                    mine.push_back(secondsSince(start));
                }
            });
        for (std::thread& rank : ranks)
            rank.join();
        std::vector<double> all;
        for (const std::vector<double>& mine : took)
            all.insert(all.end(), mine.begin(), mine.end());
        return medianSeconds(std::move(all));
    }

    std::unique_ptr<Device> device() const { return makeHostDevice(m_options.threads); }

private:
    const CalibrationOptions& m_options;
    const std::function<void(const std::string&)>& m_progress;
};

/// Output, gradient of the input and gradient of the weight: the three ways in which operands are stored.
Figure product(const Stopwatch& watch, DType dtype)
{
    constexpr std::int64_t kTokens = 1024;
    constexpr std::int64_t kIn = 512;
    constexpr std::int64_t kOut = 1024;
    struct Linear {
        Operand input, weight, output, gradInput, gradWeight;
    };
    const std::string what = fmt::format("a linear layer of {} x {} over {} tokens, forward and backward, {}", kIn,
                                         kOut, kTokens, nameOf(dtype));
    const double seconds = watch.time(what, [&] {
        Rotating<Linear> layers(bytesOf(2 * kTokens * kIn + 2 * kIn * kOut + kTokens * kOut, dtype).count(), [&] {
            return Linear{Operand(kTokens * kIn, dtype), Operand(kIn * kOut, dtype), Operand(kTokens * kOut, dtype),
                          Operand(kTokens * kIn, dtype), Operand(kIn * kOut, dtype)};
        });
        return [=, device = watch.device(), layers = std::move(layers)]() mutable {
            Linear& l = layers.next();
            device->multiply(l.input.view(), Transpose::No, l.weight.view(), Transpose::Yes, l.output.view(), kTokens,
                             kOut, kIn);
            device->multiply(l.output.view(), Transpose::Yes, l.input.view(), Transpose::No, l.gradWeight.view(), kOut,
                             kIn, kTokens);
            device->multiply(l.output.view(), Transpose::No, l.weight.view(), Transpose::No, l.gradInput.view(),
                             kTokens, kIn, kOut);
        };
    });
    return measuredFigure(3 * 2.0 * kTokens * kIn * kOut / seconds, what);
}

void attention(Gpu& gpu, const Stopwatch& watch)
{
    constexpr std::int64_t kLength = 256;
    constexpr std::int64_t kHeads = 8;
    constexpr std::int64_t kHeadDim = 64;
    constexpr std::int64_t kElements = kLength * kHeads * kHeadDim;
    static constexpr AttentionShape kShape{1, kLength, kHeads, kHeads, kHeadDim};
    struct Heads {
        Operand q{kElements}, k{kElements}, v{kElements}, context{kElements}, sums{kLength * kHeads};
        Operand gradient{kElements}, gradQ{kElements}, gradK{kElements}, gradV{kElements};
    };
    const auto prepare = [&](bool backward) {
        return [&watch, backward] {
            const auto view = [](Operand& operand) { return HeadsView{operand.view(), 0, kHeads * kHeadDim}; };
            auto device = watch.device();
            const auto forward = [view](Device& on, Heads& h) {
                on.attention(kShape, view(h.q), view(h.k), view(h.v), view(h.context), h.sums.view());
            };
            Rotating<Heads> heads(8 * 4 * kElements, [&] {
                Heads made;
                forward(*device, made);
                return made;
            });
            return [=, device = std::move(device), heads = std::move(heads)]() mutable {
                Heads& h = heads.next();
                if (backward)
                    device->attentionGradient(kShape,
                                              {view(h.gradient), view(h.q), view(h.k), view(h.v), view(h.context),
                                               h.sums.view(), view(h.gradQ), view(h.gradK), view(h.gradV)});
                else
                    forward(*device, h);
            };
        };
    };
    const std::string what =
        fmt::format("causal attention of {} heads of {} over {} tokens", kHeads, kHeadDim, kLength);
    // Pairs of a query and a key that the mask leaves, two products forward and five backward.
    constexpr double kProduct = 2.0 * kHeads * kHeadDim * kLength * kLength / 2;
    const double forward = watch.time(what, prepare(false));
    const double backward = watch.time(what + ", backward", prepare(true));
    gpu.measuredRates[MeasuredRate::AttentionForward] = measuredFigure(2 * kProduct / forward, what);
    gpu.measuredRates[MeasuredRate::AttentionBackward] = measuredFigure(5 * kProduct / backward, what + ", backward");
}

/// Everything of a llama block but products and attention, forward and backward.
Figure pointwise(const Stopwatch& watch)
{
    constexpr std::int64_t kTokens = 1024;
    constexpr std::int64_t kWidth = 512;
    constexpr std::int64_t kHeadDim = 64;
    constexpr std::int64_t kInner = 1376; // 8/3 of the width, as llama's
    static constexpr NormShape kNorm{kTokens, kWidth, false, 1e-5F};
    Architecture plain;
    plain.headDim = kHeadDim;
    const RotaryFrequencies frequencies = rotaryFrequencies(plain, kTokens);
    const RotateShape rotate{kTokens, kTokens, kWidth / kHeadDim, kHeadDim, &frequencies};
    struct Block {
        Operand hidden{kTokens * kWidth}, normed{kTokens * kWidth}, statistics{kTokens}, weight{kWidth};
        Operand gradWeight{kWidth}, sum{kTokens * kWidth};
        Operand gate{kTokens * kInner}, up{kTokens * kInner}, product{kTokens * kInner};
        Operand gradGate{kTokens * kInner}, gradUp{kTokens * kInner};
    };
    // Tensors that are read or written, of the width and of the inner width: twice each norm (2; 3 and 2 backward) and
    // addition (3, and 3 backward), rotation of queries and keys (2 each, forward and backward), SwiGLU (3 and 5).
    constexpr double kBytes =
        4.0 * kTokens * (2 * (2 + 3 + 2 + 3 + 3) * kWidth + 2 * 2 * 2 * kWidth + (3 + 5) * kInner);
    const std::string what = fmt::format("norms, rotations, additions and SwiGLU of a block of {} x {} over {} tokens",
                                         kWidth, kInner, kTokens);
    const double seconds = watch.time(what, [&] {
        Rotating<Block> blocks(4 * kTokens * (3 * kWidth + 5 * kInner), [] { return Block(); });
        return [rotate, device = watch.device(), blocks = std::move(blocks)]() mutable {
            Block& b = blocks.next();
            const TensorView none{};
            for (int half = 0; half < 2; ++half) { // attention and MLP
                device->norm(kNorm, b.hidden.view(), b.weight.view(), none, b.normed.view(), b.statistics.view());
                device->rotate(rotate, b.normed.view(), false);
                device->add(b.hidden.view(), b.normed.view(), b.sum.view());
            }
            device->swiGlu(b.gate.view(), b.up.view(), b.product.view());
            device->swiGluGradient(b.product.view(), b.gate.view(), b.up.view(), b.gradGate.view(), b.gradUp.view());
            for (int half = 0; half < 2; ++half) {
                device->rotate(rotate, b.sum.view(), true);
                device->normGradient(kNorm, b.sum.view(), b.hidden.view(), b.statistics.view(), b.weight.view(),
                                     b.normed.view());
                device->normWeightsGradient(kNorm, b.sum.view(), b.hidden.view(), b.statistics.view(),
                                            b.gradWeight.view(), none);
                device->add(b.hidden.view(), b.normed.view(), b.sum.view());
            }
        };
    });
    return measuredFigure(kBytes / seconds, what);
}

Figure optimizer(const Stopwatch& watch)
{
    constexpr std::int64_t kElements = 1 << 20;
    struct States {
        Operand parameter{kElements}, gradient{kElements}, first{kElements}, second{kElements};
    };
    const std::string what = fmt::format("AdamW of {} fp32 elements", kElements);
    const double seconds = watch.time(what, [] {
        Rotating<States> states(4 * 4 * kElements, [] {
            States made;
            std::memset(made.second.bytes(), 0, 4 * kElements);
            return made;
        });
        return [states = std::move(states)]() mutable {
            States& s = states.next();
            OptimizerRun run;
            run.parameter = s.parameter.bytes();
            run.gradient = s.gradient.bytes();
            run.moment[0] = s.first.bytes();
            run.moment[1] = s.second.bytes();
            run.count = kElements;
            stepElements(run, Optimizer::AdamW, {}, 1);
        };
    });
    return measuredFigure(28.0 * kElements / seconds, what); // reads four tensors, writes three
}

Figure copy(const Stopwatch& watch)
{
    constexpr std::int64_t kElements = 1 << 20;
    struct Pair {
        Operand from{kElements}, to{kElements};
    };
    const std::string what = fmt::format("copies of {} MiB", 4 * kElements >> 20);
    const double seconds = watch.time(what, [] {
        return [pairs = Rotating<Pair>(2 * 4 * kElements, [] { return Pair(); })]() mutable {
            Pair& pair = pairs.next();
            std::memcpy(pair.to.bytes(), pair.from.bytes(), 4 * kElements);
        };
    });
    return measuredFigure(2 * 4.0 * kElements / seconds, what);
}

} // namespace

double medianSeconds(std::vector<double> values)
{
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

void measureKernels(Gpu& gpu, const CalibrationOptions& options,
                    const std::function<void(const std::string&)>& progress)
{
    const Stopwatch watch(options, progress);
    gpu.peakFlops[DType::Fp32] = product(watch, DType::Fp32);
    gpu.peakFlops[DType::Bf16] = product(watch, DType::Bf16);
    attention(gpu, watch);
    gpu.measuredRates[MeasuredRate::Pointwise] = gpu.memoryBandwidth = pointwise(watch);
    gpu.measuredRates[MeasuredRate::Optimizer] = optimizer(watch);
    gpu.measuredRates[MeasuredRate::Copy] = copy(watch);
}

} // namespace shardwright
