// Programs of the layers around the blocks: embedding, final norm, head, and the loss behind them.

#include "planner/activations/block_program.hpp"

namespace shardwright {

namespace {

using C = Category;

constexpr BufferSpec kPositionSum{"token embedding before positions and norm", "c T H", "HF GPT2Model.forward",
                                  C::Temporaries};
constexpr BufferSpec kEmbeddingMask{"embedding dropout mask", "T H", "torch native_dropout", C::Activations};
constexpr BufferSpec kFinalFp32{"fp32 copy of the final norm's input", "4 T H", "HF LlamaRMSNorm.forward",
                                C::Activations};
constexpr BufferSpec kFinalHat{"normalised input of the final norm", "c T H", "HF LlamaRMSNorm.forward",
                               C::Activations};
constexpr BufferSpec kFinalScratch{"fp32 scratch of the final norm", "4 T H", "HF LlamaRMSNorm.forward",
                                   C::Temporaries};
constexpr BufferSpec kLogitsFp32{"fp32 copy of the logits", "4 T V", "HF ForCausalLMLoss: logits.float()", C::Logits};
constexpr BufferSpec kShiftedLogits{"shifted copy of the fp32 logits", "4 T V",
                                    "HF before 4.46: logits[..., :-1, :].contiguous()", C::Logits};
constexpr BufferSpec kLogSoftmax{"log-softmax of the logits in fp32", "4 T V", "torch log_softmax keeps its result",
                                 C::Logits};
constexpr BufferSpec kLossStatistics{"maximum and sum of each row of logits", "8 T", "fused cross entropy", C::Logits};
constexpr BufferSpec kLogitsChunk{"fp32 logits of one chunk", "4 T V / chunks", "Liger fused_linear_cross_entropy",
                                  C::Logits};
constexpr BufferSpec kGradNll{"gradient of the negative log likelihood", "4 T V", "torch nll_loss_backward", C::Logits};
constexpr BufferSpec kGradLogSoftmax{"gradient of the log-softmax", "4 T V", "torch _log_softmax_backward_data",
                                     C::Logits};
constexpr BufferSpec kGradSlice{"gradient of the unshifted logits", "4 T V", "torch slice_backward", C::Logits};

} // namespace

std::int64_t lossChunks(const Architecture& architecture)
{
    return std::max<std::int64_t>(1, ceilDivide(architecture.vocab, std::max<std::int64_t>(1, architecture.hidden)));
}

LayerProgram embeddingProgram(const ProgramContext& context, const std::vector<LeafModule>& modules)
{
    LayerProgram program;
    program.setBoundary(context.hidden);
    program.setSlotClass(kInput, -1);                              // token ids are accounted for with the batch
    program.setSlotClass(kGradInput, -1);                          // and have no gradient
    const std::int64_t states = context.model.architecture.hidden; // elements a token
    const int sum = program.tensor(context.add(kPositionSum, modules.size() > 1 ? states : 0, context.computeBytes()));
    const int mask =
        program.tensor(context.add(kEmbeddingMask, context.model.architecture.dropout > 0 ? states : 0, 1));
    const int last = static_cast<int>(modules.size()) - 1;
    for (int module = 0; module < last; ++module)
        program.forward(module, {}, {sum});
    program.forward(last, {sum}, {kOutput, mask});
    for (int module = last; module >= 0; --module)
        program.backward(module, {kGradOutput, mask}, {});
    return program;
}

LayerProgram finalNormProgram(const ProgramContext& context, const std::vector<LeafModule>&)
{
    LayerProgram program;
    program.setBoundary(context.hidden);
    const Training& training = context.training;
    const Architecture& architecture = context.model.architecture;
    const std::int64_t states = architecture.hidden;
    if (training.fusedNorm || training.compile || architecture.norm == NormKind::LayerNorm) {
        program.forward(0, {kInput}, {kOutput});
        program.backward(0, {kGradOutput, kInput}, {kGradInput});
        return program;
    }
    const int fp32 = program.tensor(context.add(kFinalFp32, states, 4));
    const int hat = program.tensor(context.add(kFinalHat, states, context.computeBytes()));
    const int scratch = program.tensor(context.add(kFinalScratch, states, 4));
    program.forward(0, {kInput}, {fp32, scratch});
    program.forward(0, {fp32}, {scratch, hat});
    program.forward(0, {hat}, {kOutput});
    const int gradUpcast = program.tensor(context.add(kFinalScratch, states, 4));
    const int gradProduct = program.tensor(context.add(kFinalScratch, states, 4));
    program.backward(0, {kGradOutput, hat}, {gradUpcast});
    program.backward(0, {gradUpcast, fp32}, {gradProduct});
    program.backward(0, {gradProduct}, {kGradInput});
    return program;
}

LayerProgram headProgram(const ProgramContext& context, const std::vector<LeafModule>& modules, BufferClassId logits)
{
    LayerProgram program;
    program.setBoundary(context.hidden);
    program.setSlotClass(kOutput, logits);
    program.setSlotClass(kGradOutput, logits);
    const bool keepsInput = modules.empty() || modules.front().needsInput();
    program.forward(0, {kInput}, {kOutput});
    program.backward(0, {kGradOutput, keepsInput ? static_cast<int>(kInput) : -1}, {kGradInput});
    return program;
}

LayerProgram lossProgram(const ProgramContext& context, BufferClassId logits)
{
    LayerProgram program;
    program.setSlotClass(kInput, logits);
    program.setSlotClass(kGradInput, logits);
    const Training& training = context.training;
    const std::int64_t all = context.model.architecture.vocab;
    const bool cast = context.compute != DType::Fp32; // .float() of fp32 logits is no copy
    switch (training.loss) {
    case LossKind::Fused: {
        const std::int64_t chunk = ceilDivide(all, lossChunks(context.model.architecture));
        const int forwardChunk = program.tensor(context.add(kLogitsChunk, chunk, 4));
        program.forward(-1, {kInput}, {forwardChunk});
        program.backward(-1, {kInput}, {kGradInput});
        return program;
    }
    case LossKind::Compiled: {
        const int statistics = program.tensor(context.add(kLossStatistics, 1, 8));
        program.forward(-1, {kInput}, {statistics});
        program.backward(-1, {kInput, statistics}, {kGradInput});
        if (training.holdsLogits)
            program.handOver(kInput);
        return program;
    }
    case LossKind::ShiftedCopy: {
        const int fp32 = cast ? program.tensor(context.add(kLogitsFp32, all, 4)) : static_cast<int>(kInput);
        const int shifted = program.tensor(context.add(kShiftedLogits, all, 4));
        const int logSoftmax = program.tensor(context.add(kLogSoftmax, all, 4));
        program.forward(-1, {kInput}, {fp32});
        program.forward(-1, {fp32}, {shifted});
        program.forward(-1, {shifted, fp32}, {logSoftmax});
        const int gradNll = program.tensor(context.add(kGradNll, all, 4));
        const int gradLogSoftmax = program.tensor(context.add(kGradLogSoftmax, all, 4));
        const int gradSlice = program.tensor(context.add(kGradSlice, all, 4));
        program.backward(-1, {logSoftmax}, {gradNll});
        program.backward(-1, {gradNll, logSoftmax}, {gradLogSoftmax});
        program.backward(-1, {gradLogSoftmax}, {gradSlice});
        program.backward(-1, {gradSlice}, {kGradInput});
        if (training.holdsLogits)
            program.handOver(fp32);
        return program;
    }
    case LossKind::Default: break;
    }
    const int fp32 = cast ? program.tensor(context.add(kLogitsFp32, all, 4)) : static_cast<int>(kInput);
    const int logSoftmax = program.tensor(context.add(kLogSoftmax, all, 4));
    program.forward(-1, {kInput}, {cast ? fp32 : -1});
    program.forward(-1, {kInput, fp32}, {logSoftmax}); // the caller's logits live until the loss is there
    const int gradNll = program.tensor(context.add(kGradNll, all, 4));
    const int gradLogSoftmax = program.tensor(context.add(kGradLogSoftmax, all, 4));
    program.backward(-1, {logSoftmax}, {gradNll});
    program.backward(-1, {gradNll, logSoftmax}, {gradLogSoftmax});
    program.backward(-1, {gradLogSoftmax}, {kGradInput});
    if (training.holdsLogits)
        program.handOver(kInput);
    return program;
}

} // namespace shardwright
