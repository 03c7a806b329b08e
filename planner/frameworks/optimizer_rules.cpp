#include "planner/frameworks/optimizer_rules.hpp"

namespace shardwright {

namespace {

constexpr std::int64_t kBitsAndBytesBlock =
    256; // bitsandbytes optim/optimizer.py: block-wise quantisation, blocksize 256

/// How often a step reads or writes a tensor of each sort.
struct Accesses {
    int parameters = 0;
    int gradients = 0;
    int moments = 0;     // first moment, momentum buffer
    int seconds = 0;     // second moment
    int temporaries = 0; // in the states' dtype
};

/// One kernel: everything is read once and what changes is written once.
Accesses fusedAccesses(Optimizer optimizer)
{
    const int moments = optimizerMoments(optimizer);
    return {2, 1, moments >= 1 ? 2 : 0, moments >= 2 ? 2 : 0, 0};
}

/// Kernel by kernel, as the sources list them.
Accesses foreachAccesses(Optimizer optimizer)
{
    switch (optimizer) {
    // torch/optim/adamw.py _multi_tensor_adamw: mul_(p); lerp_(m, g); mul_(v); addcmul_(v, g); sqrt(v) -> t; div_(t);
    // add_(t); addcdiv_(p, m, t). torch/optim/adam.py without weight decay leaves out the first.
    case Optimizer::AdamW: return {4, 2, 3, 5, 6};
    case Optimizer::Adam: return {2, 2, 3, 5, 6};
    // torch/optim/sgd.py _multi_tensor_sgd: mul_(m); add_(m, g); add_(p, m).
    case Optimizer::SgdMomentum: return {2, 1, 5, 0, 0};
    case Optimizer::Sgd: return {2, 1, 0, 0, 0};
    // transformers/optimization.py Adafactor.step: g^2 + eps -> t, its means over rows and columns, their outer
    // product -> t, mul_ by g, rms(t), div_(t), mul_(t) by the rate, add_(p, t). No tensor of moments is touched.
    case Optimizer::Adafactor: return {2, 2, 0, 0, 12};
    // lion-pytorch: mul_(p); clone(m) -> t; mul_(t); add_(t, g); sign_(t); add_(p, t); mul_(m); add_(m, g).
    case Optimizer::Lion: return {4, 2, 6, 0, 8};
    // bitsandbytes has only kernels that do the whole step; DeepSpeed's 1-bit optimizers are counted with their
    // compression, by the rooms that run them.
    case Optimizer::Adam8bit:
    case Optimizer::OneBitAdam:
    case Optimizer::ZeroOneAdam:
    case Optimizer::OneBitLamb: return fusedAccesses(optimizer);
    }
    return {};
}

} // namespace

int optimizerMoments(Optimizer optimizer)
{
    switch (optimizer) {
    case Optimizer::AdamW:
    case Optimizer::Adam:
    case Optimizer::Adam8bit:
    case Optimizer::OneBitAdam:
    case Optimizer::ZeroOneAdam:
    case Optimizer::OneBitLamb: return 2;
    case Optimizer::SgdMomentum:
    case Optimizer::Lion: return 1;
    case Optimizer::Sgd:
    case Optimizer::Adafactor: return 0;
    }
    return 0;
}

Bytes optimizerStateBytes(Optimizer optimizer, std::int64_t elements, DType stateDtype)
{
    if (optimizer == Optimizer::Adam8bit)
        return 2 * (bytesOf(elements, DType::Int8) + bytesOf(ceilDivide(elements, kBitsAndBytesBlock), DType::Fp32));
    return bytesOf(elements, stateDtype) * optimizerMoments(optimizer);
}

Bytes adafactorState(std::int64_t rows, std::int64_t columns)
{
    return bytesOf(checkedAdd(rows, columns), DType::Fp32);
}

Bytes adafactorStateOf(const Model& model)
{
    Bytes total;
    for (std::size_t type = 0; type < model.layerTypes.size(); ++type) {
        Bytes ofLayer;
        for (const ParameterSpec& parameter : model.layerTypes[type].parameters) {
            if (!parameter.trainable)
                continue;
            const Bytes one = parameter.shape.size() == 2 ? adafactorState(parameter.shape[0], parameter.shape[1])
                                                          : bytesOf(parameter.numel, DType::Fp32);
            ofLayer += one * parameter.repeat;
        }
        total += ofLayer * model.layersOfType(static_cast<int>(type));
    }
    return total;
}

Bytes shardStateBytes(const Training& training, const Model& model, std::int64_t elements, std::int64_t trainable,
                      DType stateDtype)
{
    if (training.optimizer != Optimizer::Adafactor)
        return optimizerStateBytes(training.optimizer, elements, stateDtype);
    if (trainable == 0)
        return Bytes(0);
    // Shards of a flat parameter hold a share of the factors; ceil so that the shards together hold all of them.
    const double share = static_cast<double>(elements) / static_cast<double>(trainable);
    return Bytes(static_cast<std::int64_t>(adafactorStateOf(model).asDouble() * share) + 1);
}

OptimizerForm torchOptimizerForm(const Training& training)
{
    const bool fused = training.fusedOptimizer || training.implementation == Implementation::Shardrun;
    return fused ? OptimizerForm::Fused : OptimizerForm::Foreach;
}

Bytes optimizerStepBytes(Optimizer optimizer, OptimizerForm form, std::int64_t elements, const SteppedDtypes& dtypes)
{
    // Adafactor has no fused form anywhere.
    const bool fused = form == OptimizerForm::Fused && optimizer != Optimizer::Adafactor;
    const Accesses accesses = fused ? fusedAccesses(optimizer) : foreachAccesses(optimizer);
    const Bytes rest = bytesOf(elements, dtypes.parameters) * accesses.parameters +
                       bytesOf(elements, dtypes.gradients) * accesses.gradients;
    if (optimizer == Optimizer::Adam8bit)
        return rest + optimizerStateBytes(optimizer, elements, dtypes.states) * 2;
    return rest + bytesOf(elements, dtypes.states) * (accesses.moments + accesses.seconds + accesses.temporaries);
}

Bytes clippingBytes(const Training& training, Bytes gradients)
{
    return training.gradientClipping ? gradients * 3 : Bytes(0);
}

bool foreachTemporaries(const Training& training)
{
    return (training.optimizer == Optimizer::AdamW || training.optimizer == Optimizer::Adam) &&
           torchOptimizerForm(training) == OptimizerForm::Foreach;
}

} // namespace shardwright
