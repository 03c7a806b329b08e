#include "planner/activations/norm_steps.hpp"

namespace shardwright {

namespace {

using C = Category;

constexpr BufferSpec kFp32{"fp32 copy of a norm's input", "4 T H", "HF LlamaRMSNorm.forward", C::Activations};
constexpr BufferSpec kSquare{"fp32 squares inside a norm", "4 T H", "HF LlamaRMSNorm.forward", C::Temporaries};
constexpr BufferSpec kScaled{"normalised input in fp32", "4 T H", "HF LlamaRMSNorm.forward", C::Temporaries};
constexpr BufferSpec kHat{"normalised input before the norm's weight", "c T H", "HF LlamaRMSNorm.forward",
                          C::Activations};
constexpr BufferSpec kHatFp32{"normalised input in fp32 before the norm's weight", "4 T H", "HF GemmaRMSNorm.forward",
                              C::Activations};
constexpr BufferSpec kProduct{"normalised input times weight in fp32", "4 T H", "HF GemmaRMSNorm.forward",
                              C::Temporaries};
constexpr BufferSpec kRsqrt{"reciprocal deviation", "4 T", "torch rsqrt keeps its result", C::Activations};
constexpr BufferSpec kStatistics{"mean and reciprocal deviation", "8 T", "torch native_layer_norm", C::Activations};
constexpr BufferSpec kOut{"output of a norm", "c T H", "torch linear", C::Activations};
constexpr BufferSpec kGradHat{"gradient of a norm's normalised input", "c T H", "torch autograd", C::Temporaries};
constexpr BufferSpec kGradFp32{"fp32 gradient inside a norm", "4 T H", "torch autograd: mul, pow and mean backward",
                               C::Temporaries};

} // namespace

NormSteps normStepsOf(const ProgramContext& context)
{
    if (context.training.compile || context.training.fusedNorm ||
        context.model.architecture.norm == NormKind::LayerNorm)
        return NormSteps::Kernel;
    return context.rules.normWeightInFp32 ? NormSteps::EagerInFp32 : NormSteps::Eager;
}

NormTensors normForward(const ProgramContext& context, LayerProgram& program, int layerType, int module, int input,
                        std::int64_t width, std::int64_t rows, int out)
{
    const std::int64_t c = context.computeBytes();
    const auto tensor = [&](const BufferSpec& spec, std::int64_t elements, std::int64_t each) {
        return program.tensor(context.add(spec, elements, each, layerType));
    };
    NormTensors norm;
    norm.kind = normStepsOf(context);
    norm.module = module;
    norm.input = input;
    norm.out = out >= 0 ? out : tensor(kOut, width, c);
    if (norm.kind == NormSteps::Kernel) {
        norm.statistics = context.model.architecture.norm == NormKind::LayerNorm ? tensor(kStatistics, rows, 8)
                                                                                 : tensor(kRsqrt, rows, 4);
        program.forward(module, {input}, {norm.statistics, norm.out});
        return norm;
    }
    // The Python name "hidden_states" holds the fp32 copy, then its normalised form until the norm returns.
    norm.fp32 = c == 4 ? input : tensor(kFp32, width, 4);
    norm.statistics = tensor(kRsqrt, rows, 4);
    const int square = tensor(kSquare, width, 4);
    program.forward(module, {input}, {c == 4 ? -1 : norm.fp32});
    program.forward(module, {norm.fp32}, {square, norm.statistics}).kernels(4, {square}); // pow, mean, + eps, rsqrt
    if (norm.kind == NormSteps::EagerInFp32) {
        norm.hat = tensor(kHatFp32, width, 4);
        const int product = c == 4 ? -1 : tensor(kProduct, width, 4);
        program.forward(module, {norm.fp32, norm.statistics}, {norm.hat});
        program.forward(module, {norm.hat}, {product});
        program.forward(module, {product >= 0 ? product : norm.hat}, {norm.out}, {norm.hat});
        return norm;
    }
    const int scaled = tensor(kScaled, width, 4);
    norm.hat = c == 4 ? scaled : tensor(kHat, width, c);
    program.forward(module, {norm.fp32, norm.statistics}, {scaled});
    program.forward(module, {scaled}, {c == 4 ? -1 : norm.hat});
    program.forward(module, {norm.hat}, {norm.out}, {scaled});
    return norm;
}

void normBackward(const ProgramContext& context, LayerProgram& program, int layerType, const NormTensors& norm,
                  std::int64_t width, int gradOut, int gradInput)
{
    if (norm.kind == NormSteps::Kernel) {
        program.backward(norm.module, {gradOut, norm.input, norm.statistics}, {gradInput})
            .kernels(2, {gradOut, norm.input}); // the weights' gradient is a kernel of its own
        return;
    }
    const std::int64_t c = context.computeBytes();
    const auto fp32 = [&] { return program.tensor(context.add(kGradFp32, width, 4, layerType)); };
    const int gradHatFp32 = fp32();
    if (norm.kind == NormSteps::EagerInFp32) {
        const int upcast = c == 4 ? gradOut : fp32();
        const int weightProduct = fp32();
        program.backward(norm.module, {gradOut}, {c == 4 ? -1 : upcast});
        program.backward(norm.module, {upcast, norm.hat}, {weightProduct, gradHatFp32})
            .kernels(3, {upcast, weightProduct});
    } else {
        // Both products of the weight's multiplication exist before the weight's is summed up.
        const int weightProduct = program.tensor(context.add(kGradHat, width, c, layerType));
        const int gradHat = c == 4 ? gradHatFp32 : program.tensor(context.add(kGradHat, width, c, layerType));
        program.backward(norm.module, {gradOut, norm.hat}, {weightProduct, gradHat})
            .kernels(3, {gradOut, weightProduct});
        program.backward(norm.module, {gradHat}, {c == 4 ? -1 : gradHatFp32});
    }
    const int through = fp32();
    const int statisticsProduct = fp32();
    program.backward(norm.module, {gradHatFp32, norm.fp32, norm.statistics}, {through, statisticsProduct})
        .kernels(5, {gradHatFp32, statisticsProduct}); // and the mean's and the root's
    const int mean = fp32();
    program.backward(norm.module, {}, {mean}, {through, norm.fp32});
    const int power = fp32();
    const int doubled = fp32();
    const int chained = fp32();
    program.backward(norm.module, {mean, norm.fp32}, {power, doubled, chained}, {through}).kernels(3, {power, doubled});
    program.backward(norm.module, {through, chained}, {gradInput}).kernels(2, {through, through}); // summed, then cast
}

} // namespace shardwright
