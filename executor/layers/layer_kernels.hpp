#pragma once

// What the layers of the model compute: the executor's side of core/actions.hpp's Kernel, written once against Device.

#include <memory>
#include <vector>

#include "core/actions.hpp"
#include "core/layer_refusals.hpp"
#include "executor/tensor_view.hpp"

namespace shardwright {

class Device;

/// One kernel with its operands, in the order that Kernel documents.
struct KernelCall {
    Kernel kernel = Kernel::None;
    int layer = -1;  // position in Model::layers of the module's owner
    int module = -1; // its leaf module, in forward order; -1 without parameters
    std::vector<TensorView> reads;
    std::vector<TensorView> writes;
    std::vector<TensorView> weights;         // the module's parameters in their order, in the compute dtype
    std::vector<TensorView> weightGradients; // likewise, of a backward; written, not added
};

/// How many buffers a kernel reads (what it changes in place among them) and writes.
struct OperandCount {
    int reads = 0;
    int writes = 0;
};
OperandCount operandsOf(Kernel kernel);

/// Not thread-safe: one a rank. The model and the device must outlive it.
class LayerKernels {
public:
    /// `meanOver`: the loss is the mean over the tokens of a micro-batch, divided by this (gradient accumulation).
    LayerKernels(const Model& model, const Training& training, std::int64_t meanOver, Device& device);
    ~LayerKernels();

    /// Bytes and dtype of what a kernel makes, one a write operand: sizes of activations come from here.
    struct Made {
        Bytes bytes;
        DType dtype = DType::Fp32;
    };
    std::vector<Made> made(Kernel kernel, int layer, int module) const;
    /// Indices into listParameters(model) of a module's parameters, in their order.
    std::vector<std::int32_t> tensorsOf(int layer, int module) const;

    /// What dropout draws of the micro-batch at hand: `firstSequence` is the number in the run of its first sequence.
    void beginBatch(std::uint64_t seed, std::int64_t firstSequence);

    /// std::logic_error where operands or weights are not what the kernel needs.
    void run(const KernelCall& call);

    /// Sum of the mean losses of the micro-batches since the last call, each by `meanOver`: of one step, its mean loss.
    double takeLoss();

private:
    struct Parts;
    std::unique_ptr<Parts> m_parts;
};

} // namespace shardwright
