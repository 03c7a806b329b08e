// Programs of the layers around the blocks: embedding, final norm, head, and the loss behind them.

#include "planner/activations/norm_steps.hpp"

namespace shardwright {

namespace {

using C = Category;

constexpr BufferSpec kLookedUp{"embeddings before they are summed, scaled or dropped out", "c T H",
                               "HF GPT2Model.forward, GemmaModel.forward", C::Temporaries};
constexpr BufferSpec kGradLookedUp{"gradient of the embeddings", "c T H", "torch mul or native_dropout backward",
                                   C::Temporaries};
constexpr BufferSpec kEmbeddingMask{"embedding dropout mask", "T H", "torch native_dropout", C::Activations};
constexpr std::string_view kSource = "arXiv 2205.05198 sec. 4.2; megatron/core/tensor_parallel/layers.py";
constexpr BufferSpec kPartial{"embeddings of this rank's part of the vocabulary", "c T H", kSource, C::Temporaries};
constexpr BufferSpec kScattered{"embeddings of this rank's part of the sequence", "c T H / t", kSource, C::Temporaries};
constexpr BufferSpec kGathered{"hidden states gathered over the tensor-parallel ranks", "c T H", kSource,
                               C::Activations};
constexpr BufferSpec kGradWhole{"gradient of the hidden states, whole", "c T H", kSource, C::Temporaries};
constexpr BufferSpec kPartialLogits{"logits of this rank's part of the vocabulary", "c T V / t",
                                    "transformers tp_plan colwise_rep", C::Logits};
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

namespace {

int hiddenCollective(const ProgramContext& context, OpKind kind)
{
    return context.addCollective({kind, LocalGroup::Tensor, "hidden states", "c T H", kSource,
                                  checkedMultiply(context.model.architecture.hidden, context.computeBytes()),
                                  context.compute});
}

/// An embedding whose rows are split over the tensor-parallel ranks: each looks up its own, the sum is everybody's.
/// core/models/common/embeddings/language_model_embedding.py: the sum is scattered along the sequence at once only
/// where no learned positions are added to it.
LayerProgram splitEmbeddingProgram(const ProgramContext& context, const std::vector<LeafModule>& modules)
{
    LayerProgram program;
    program.setBoundary(context.hidden);
    program.setSlotClass(kInput, -1);
    program.setSlotClass(kGradInput, -1);
    const ProgramContext along = context.alongSequence();
    const std::int64_t states = context.model.architecture.hidden;
    const std::int64_t c = context.computeBytes();
    const bool splits = context.variant.local.splitsSequence();
    const bool dropped = context.model.architecture.embeddingDropout > 0;
    const bool normed = modules.back().kind == ModuleKind::FinalNorm;
    const int tables = static_cast<int>(modules.size()) - (normed ? 1 : 0);
    const bool changed = normed || dropped || context.rules.scalesEmbedding; // once it is along the sequence

    int looked = program.tensor(context.add(kPartial, states, c));
    program.forward(0, {}, {looked});
    if (splits && tables == 1) {
        const int scattered = changed ? program.tensor(along.add(kScattered, states, c)) : static_cast<int>(kOutput);
        program.forwardCollective(hiddenCollective(context, OpKind::ReduceScatter), {looked}, {scattered});
        looked = scattered;
    } else {
        program.forwardCollective(hiddenCollective(context, OpKind::AllReduce), {looked}, {});
        for (int module = 1; module < tables; ++module)
            program.forward(module, {}, {program.tensor(context.add(kLookedUp, states, c))}, {looked});
        const int next = changed ? program.tensor(along.add(kScattered, states, c)) : static_cast<int>(kOutput);
        program.forward(-1, {looked}, {next});
        looked = next;
    }
    int grad = kGradOutput;
    if (normed) {
        const NormTensors norm = normForward(along, program, -1, tables, looked, states, 1, kOutput);
        grad = program.tensor(along.add(kGradLookedUp, states, c));
        normBackward(along, program, -1, norm, states, kGradOutput, grad);
    } else if (changed) {
        const int mask = dropped ? program.tensor(along.add(kEmbeddingMask, states, 1)) : -1;
        program.forward(-1, {looked}, {kOutput, mask});
        grad = program.tensor(along.add(kGradLookedUp, states, c));
        program.backward(-1, {kGradOutput, mask}, {grad});
    }
    if (splits) {
        const int whole = program.tensor(context.add(kGradWhole, states, c));
        program.backwardCollective(hiddenCollective(context, OpKind::AllGather), {grad}, {whole});
        grad = whole;
    }
    for (int module = tables - 1; module >= 0; --module)
        program.backward(module, {grad}, {});
    return program;
}

/// A head whose rows are split over the tensor-parallel ranks.
LayerProgram splitHeadProgram(const ProgramContext& context, bool keepsInput, BufferClassId logits)
{
    LayerProgram program;
    program.setBoundary(context.hidden);
    program.setSlotClass(kOutput, logits);
    program.setSlotClass(kGradOutput, logits);
    const LocalShape& local = context.variant.local;
    const std::int64_t states = context.model.architecture.hidden;
    const std::int64_t c = context.computeBytes();
    const auto whole = [&](const BufferSpec& spec) { return program.tensor(context.add(spec, states, c)); };
    int read = kInput;
    if (local.splitsSequence()) {
        read = whole(kGathered);
        program.forwardCollective(hiddenCollective(context, OpKind::AllGather), {kInput}, {read});
    }
    if (local.splitsLoss) {
        program.forward(0, {read}, {kOutput});
    } else {
        const std::int64_t vocabulary = context.model.architecture.vocab;
        const int part = program.tensor(context.add(kPartialLogits, ceilDivide(vocabulary, local.tensor), c));
        program.forward(0, {read}, {part});
        program.forwardCollective(context.addCollective({OpKind::AllGather, LocalGroup::Tensor, "logits", "c T V",
                                                         "transformers tp_plan colwise_rep",
                                                         checkedMultiply(vocabulary, c), context.compute}),
                                  {part}, {kOutput});
    }
    const bool splits = local.splitsSequence();
    const int partial = splits ? whole(kGradWhole) : static_cast<int>(kGradInput);
    if (local.regathers && splits && keepsInput) {
        read = whole(kGathered);
        program.backwardCollective(hiddenCollective(context, OpKind::AllGather), {kInput}, {read}, Beside::Following);
    }
    const Beside beside = local.regathers ? Beside::Following : Beside::Nothing;
    const auto reduce = [&] {
        if (splits)
            program.backwardCollective(hiddenCollective(context, OpKind::ReduceScatter), {partial}, {kGradInput},
                                       beside);
        else
            program.backwardCollective(hiddenCollective(context, OpKind::AllReduce), {partial}, {}, beside);
    };
    if (local.regathers) {
        program.backwardHalf(Half::First, 0, {kGradOutput}, {partial});
        reduce();
        program.backwardHalf(Half::Second, 0, {kGradOutput, keepsInput ? read : -1}, {}, {splits ? partial : -1});
    } else {
        program.backward(0, {kGradOutput, keepsInput ? read : -1}, {partial});
        reduce();
    }
    return program;
}

} // namespace

LayerProgram embeddingProgram(const ProgramContext& context, const std::vector<LeafModule>& modules)
{
    if (context.variant.local.splitsTensors() && context.variant.local.splitsLoss)
        return splitEmbeddingProgram(context, modules);
    LayerProgram program;
    program.setBoundary(context.hidden);
    program.setSlotClass(kInput, -1);     // token ids are accounted for with the batch
    program.setSlotClass(kGradInput, -1); // and have no gradient
    const Architecture& architecture = context.model.architecture;
    const std::int64_t states = architecture.hidden; // elements a token
    const bool dropped = architecture.embeddingDropout > 0;
    if (modules.back().kind == ModuleKind::FinalNorm) { // bloom's word_embeddings_layernorm
        const int looked = program.tensor(context.add(kLookedUp, states, context.computeBytes()));
        const int grad = program.tensor(context.add(kGradLookedUp, states, context.computeBytes()));
        const int normModule = static_cast<int>(modules.size()) - 1;
        program.forward(0, {}, {looked});
        const NormTensors norm = normForward(context, program, -1, normModule, looked, states, 1, kOutput);
        normBackward(context, program, -1, norm, states, kGradOutput, grad);
        program.backward(0, {grad}, {});
        return program;
    }
    const int last = static_cast<int>(modules.size()) - 1;
    // Tables of tokens and positions are looked up one after the other and added; a norm (bloom) or a factor follows.
    const bool changed = last > 0 || context.rules.scalesEmbedding || dropped;
    const int looked =
        changed ? program.tensor(context.add(kLookedUp, states, context.computeBytes())) : static_cast<int>(kOutput);
    const int more = last > 0 ? program.tensor(context.add(kLookedUp, states, context.computeBytes())) : -1;
    const int mask = dropped ? program.tensor(context.add(kEmbeddingMask, states, 1)) : -1;
    const int summed = last > 0 && dropped ? program.tensor(context.add(kLookedUp, states, context.computeBytes()))
                                           : static_cast<int>(kOutput);
    program.forward(0, {}, {looked});
    for (int module = 1; module <= last; ++module)
        program.forward(module, {}, {more}, {looked});
    if (last > 0)
        program.forward(-1, {looked, more}, {summed});
    if (changed && (last == 0 || dropped))
        program.forward(-1, {summed == kOutput ? looked : summed}, {kOutput, mask}, {looked, more});
    int grad = kGradOutput;
    if (dropped || context.rules.scalesEmbedding) {
        grad = program.tensor(context.add(kGradLookedUp, states, context.computeBytes()));
        program.backward(-1, {kGradOutput, mask}, {grad});
    }
    for (int module = last; module >= 0; --module)
        program.backward(module, {grad}, {});
    return program;
}

LayerProgram finalNormProgram(const ProgramContext& context, const std::vector<LeafModule>&)
{
    LayerProgram program;
    program.setBoundary(context.hidden);
    const std::int64_t states = context.model.architecture.hidden;
    const ProgramContext along = context.alongSequence();
    const NormTensors norm = normForward(along, program, -1, 0, kInput, states, 1, kOutput);
    program.forward(-1, {kInput, kOutput}, {})
        .is(WorkKind::Nothing); // the caller holds the input until the norm returns
    normBackward(along, program, -1, norm, states, kGradOutput, kGradInput);
    return program;
}

LayerProgram headProgram(const ProgramContext& context, const std::vector<LeafModule>& modules, BufferClassId logits)
{
    LayerProgram program;
    program.setBoundary(context.hidden);
    program.setSlotClass(kOutput, logits);
    program.setSlotClass(kGradOutput, logits);
    const bool keepsInput = modules.empty() || modules.front().needsInput();
    if (context.variant.local.splitsTensors())
        return splitHeadProgram(context, keepsInput, logits);
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
        const int chunks = static_cast<int>(lossChunks(context.model.architecture));
        const std::int64_t chunk = ceilDivide(all, chunks);
        const int forwardChunk = program.tensor(context.add(kLogitsChunk, chunk, 4));
        program.forward(-1, {kInput}, {forwardChunk}).times(chunks);
        program.backward(-1, {kInput}, {kGradInput}).times(chunks);
        return program;
    }
    case LossKind::Compiled: {
        const int statistics = program.tensor(context.add(kLossStatistics, 1, 8));
        program.forward(-1, {kInput}, {statistics}).kernels(2, {kInput}); // the greatest, then the sum
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
        program.forward(-1, {shifted}, {logSoftmax}, {fp32}).kernels(2); // and the loss of the labels
        const int gradNll = program.tensor(context.add(kGradNll, all, 4));
        const int gradLogSoftmax = program.tensor(context.add(kGradLogSoftmax, all, 4));
        const int gradSlice = program.tensor(context.add(kGradSlice, all, 4));
        program.backward(-1, {}, {gradNll}, {logSoftmax}).kernels(2);
        program.backward(-1, {gradNll, logSoftmax}, {gradLogSoftmax});
        program.backward(-1, {gradLogSoftmax}, {gradSlice}).kernels(2, {gradSlice});
        program.backward(-1, {gradSlice}, {kGradInput});
        if (training.holdsLogits)
            program.handOver(fp32);
        return program;
    }
    case LossKind::Default: break;
    }
    const int fp32 = cast ? program.tensor(context.add(kLogitsFp32, all, 4)) : static_cast<int>(kInput);
    if (training.implementation == Implementation::Megatron && cast) {
        // core/tensor_parallel/cross_entropy.py: the softmax is made in place of the fp32 logits, its gradient in place
        // of the softmax.
        program.forward(-1, {kInput}, {fp32});
        // The maximum, exponentials, their sum, the division; kept logits of the model's forward until it returns.
        program.forward(-1, {fp32}, {}, {kInput}).kernels(6, {fp32, fp32, fp32, fp32, fp32, fp32});
        program.backward(-1, {fp32}, {kGradInput}).kernels(2, {fp32, fp32});
        if (training.holdsLogits)
            program.handOver(kInput);
        return program;
    }
    const int logSoftmax = program.tensor(context.add(kLogSoftmax, all, 4));
    program.forward(-1, {kInput}, {cast ? fp32 : -1});
    program.forward(-1, {fp32}, {logSoftmax}, {kInput})
        .kernels(2); // and the loss of the labels; the caller's logits live until the loss is there
    const int gradNll = program.tensor(context.add(kGradNll, all, 4));
    const int gradLogSoftmax = program.tensor(context.add(kGradLogSoftmax, all, 4));
    program.backward(-1, {}, {gradNll}, {logSoftmax}).kernels(2);
    program.backward(-1, {gradNll, logSoftmax}, {gradLogSoftmax});
    program.backward(-1, {gradLogSoftmax}, {kGradInput});
    if (training.holdsLogits)
        program.handOver(kInput);
    return program;
}

/// llm-foundry has Composer measure LanguageCrossEntropy and LanguagePerplexity of every micro-batch's logits
/// (use_train_metrics, true by default; composer/trainer/trainer.py _eval_train_metrics). Each is a cross entropy of
/// its own, which autocast runs in fp32.
LayerProgram metricsProgram(const ProgramContext& context, BufferClassId logits)
{
    LayerProgram program;
    program.setSlotClass(kInput, logits);
    if (context.training.implementation != Implementation::LlmFoundry || !context.training.holdsLogits)
        return program;
    constexpr int kMetrics = 2;
    const std::int64_t all = context.model.architecture.vocab;
    for (int metric = 0; metric < kMetrics; ++metric) {
        const int fp32 = program.tensor(context.add(kLogitsFp32, all, 4));
        const int logSoftmax = program.tensor(context.add(kLogSoftmax, all, 4));
        program.forward(-1, {kInput}, {fp32});
        program.forward(-1, {fp32}, {logSoftmax}).kernels(2); // and the loss of the labels
    }
    return program;
}

} // namespace shardwright
