#include "planner/frameworks/optimizer_rules.hpp"

namespace shardwright {

namespace {

constexpr std::int64_t kBitsAndBytesBlock =
    256; // bitsandbytes optim/optimizer.py: block-wise quantisation, blocksize 256

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

bool foreachTemporaries(const Training& training)
{
    return (training.optimizer == Optimizer::AdamW || training.optimizer == Optimizer::Adam) &&
           !training.fusedOptimizer;
}

} // namespace shardwright
