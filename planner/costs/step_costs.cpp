#include "planner/costs/step_costs.hpp"

#include <algorithm>
#include <cmath>

#include "planner/costs/attention_kernels.hpp"

namespace shardwright {

namespace {

/// Of the pairs of a query and a key that the causal mask leaves, those that the windows leave, over all blocks.
double windowShare(const Architecture& arch, std::int64_t length)
{
    const auto s = static_cast<double>(length);
    double share = 0;
    for (std::int64_t block = 0; block < arch.layers; ++block) {
        const auto window = static_cast<double>(arch.numerics.windowOf(block));
        share += window == 0 || window >= s ? 1 : window * (2 * s - window + 1) / (s * (s + 1));
    }
    return share / static_cast<double>(arch.layers);
}

bool isExpert(ModuleKind kind)
{
    return kind == ModuleKind::ExpertIn || kind == ModuleKind::ExpertOut;
}

bool embeddingTrains(const Model& model)
{
    return std::any_of(model.layerTypes.begin(), model.layerTypes.end(), [](const LayerType& type) {
        return type.kind == LayerKind::Embedding && type.trainableNumel() > 0;
    });
}

/// Rows of `widths` elements follow each other at multiples of 16 bytes. Products in fp32 do without tensor cores.
bool aligned(std::initializer_list<std::int64_t> widths, std::int64_t elementBytes)
{
    constexpr std::int64_t kAlignment = 16;
    return elementBytes >= 4 || std::all_of(widths.begin(), widths.end(),
                                            [&](std::int64_t width) { return width * elementBytes % kAlignment == 0; });
}

/// Elements of the bias, which a linear layer adds within its product but sums up by a kernel of its own.
bool trainsBias(const LeafModule& module, const LayerType& type)
{
    return std::any_of(module.parameters.begin(), module.parameters.end(), [&](int index) {
        const ParameterSpec& parameter = type.parameters[static_cast<std::size_t>(index)];
        return parameter.shape.size() == 1 && parameter.trainable && parameter.role != ParameterRole::Norm;
    });
}

// float8 products scaled by row, in forward: torch's CUTLASS kernel with fast accumulation, "most shapes within 90-100
// % of tensor-wise efficiency" on H100 (github.com/pytorch/pytorch/issues/147971), its middle; FBGEMM's of the same
// making takes 1.00 to 1.11 of cuBLAS's time (github.com/pytorch/FBGEMM/pull/2764). In backward torchao does not
// accumulate fast, where that kernel is far slower: it takes cuBLAS's, unscaled, and scales the result by a kernel of
// its own (github.com/pytorch/ao/pull/1325, torchao/float8/float8_ops.py).
constexpr double kRowwiseRate = 0.95;

// TorchInductor's kernels that find the largest values across the rows of what they read, and scale and write it in the
// other order: 0.6 to 0.7 TB/s on H100, where those that keep to one order reach 2.0 to 2.2
// (github.com/pytorch/pytorch/issues/149982, of 2025 and blocks of 32). assumed: as much for whole columns, on other
// GPUs and without TorchInductor.
constexpr double kScaledAcrossRate = 0.65 / 2.1;

} // namespace

StepCosts::StepCosts(const PlanInput& input, const ActivationModel& activations)
    : m_input(input), m_activations(activations), m_facts(gpuFacts(input.cluster.gpu, input.cluster.gpus())),
      m_bandwidth(sustainedBandwidth(input.cluster.gpu, m_facts)), m_elementBytes(bitsOf(activations.compute()) / 8),
      m_scoresInFp32(familyRules(activations.model(), input.training).scoresInFp32),
      m_tiedHeadTrains(embeddingTrains(activations.model())),
      m_float8(input.training.precision.fp8 && input.cluster.gpu.peakFlops.count(DType::Fp8) > 0),
      m_float8ByRow(m_float8 && input.training.precision.fp8Scaling == Float8Scaling::Rowwise)
{
}

Cost StepCosts::of(const StepWork& work, const LayerProgram& program, int layerType, bool backward) const
{
    switch (work.kind) {
    case WorkKind::Nothing: return {};
    case WorkKind::Attention: return fusedAttention(backward);
    case WorkKind::AttentionScores:
    case WorkKind::AttentionContext: return eagerProducts(work, backward);
    case WorkKind::Adapter:
        return adapter(m_activations.modules(layerType)[static_cast<std::size_t>(work.module)], backward);
    case WorkKind::ByModule: break;
    }
    if (work.module < 0 || layerType < 0)
        return pointwise(work, program);
    const std::vector<LeafModule>& modules = m_activations.modules(layerType);
    if (modules.empty()) // a head that borrows the embedding's weight
        return moduleProduct(work, program, layerType, backward);
    const LeafModule& module = modules[static_cast<std::size_t>(work.module)];
    if (module.kind == ModuleKind::Embedding)
        return lookup(work, program, layerType, backward);
    return module.outFeatures > 0 ? moduleProduct(work, program, layerType, backward) : pointwise(work, program);
}

/// Of one tensor; 0 for one that does not exist.
double StepCosts::bytes(const LayerProgram& program, int slot) const
{
    const BufferClassId id = program.classOf(slot);
    if (id < 0)
        return 0;
    const ScaledClass& scaled = m_activations.classes()[static_cast<std::size_t>(id)];
    const auto tokens = static_cast<double>(m_activations.tokens(m_input.training));
    return tokens * static_cast<double>(scaled.bytesPerToken) *
           (scaled.timesSequence ? static_cast<double>(m_input.training.sequenceLength) : 1.0);
}

/// Elements a token, of the compute dtype.
std::int64_t StepCosts::width(const LayerProgram& program, int slot) const
{
    const BufferClassId id = program.classOf(slot);
    return id < 0 ? 0 : m_activations.classes()[static_cast<std::size_t>(id)].bytesPerToken / m_elementBytes;
}

Cost StepCosts::stream(double bytes, int kernels) const
{
    return {bytes / m_bandwidth + kernels * m_facts.kernelSeconds, 0, kernels};
}

Cost StepCosts::product(const MatrixProduct& product) const
{
    return {seconds(m_input.cluster.gpu, m_facts, product), product.flops(), 1};
}

Cost StepCosts::pointwise(const StepWork& work, const LayerProgram& program) const
{
    double moved = 0;
    for (const std::vector<std::int16_t>* slots : {&work.reads, &work.writes, &work.again})
        for (const std::int16_t slot : *slots)
            moved += bytes(program, slot);
    const int kernels = work.kernels * work.times;
    return stream(moved * work.times, kernels);
}

/// Rows looked up, or the gradient of the table: it is zeroed and the rows are added to it (torch
/// embedding_dense_backward sorts the ids first).
Cost StepCosts::lookup(const StepWork& work, const LayerProgram& program, int layerType, bool backward) const
{
    if (!backward)
        return stream(work.writes.empty() ? 0 : 2 * bytes(program, work.writes.front()), 1);
    const LeafModule& module = m_activations.modules(layerType)[static_cast<std::size_t>(work.module)];
    if (module.trainable == 0 || work.reads.empty())
        return {};
    constexpr int kKernels = 6; // sort in passes, segments, sum
    const double table = static_cast<double>(module.trainable) * static_cast<double>(m_elementBytes);
    return stream(table + 3 * bytes(program, work.reads.front()), kKernels);
}

/// The linear layer of a module: out = in W forward; the gradients of in and of W backward. Its shape is that of its
/// tensors, so that a shard of it costs a shard.
Cost StepCosts::moduleProduct(const StepWork& work, const LayerProgram& program, int layerType, bool backward) const
{
    const LayerType& type = m_activations.model().layerTypes[static_cast<std::size_t>(layerType)];
    const std::vector<LeafModule>& modules = m_activations.modules(layerType);
    const LeafModule* module = modules.empty() ? nullptr : &modules[static_cast<std::size_t>(work.module)];
    const Architecture& arch = m_activations.model().architecture;
    const Training& training = m_input.training;
    const LocalShape& local = m_activations.local();
    const bool head = type.kind == LayerKind::Head;
    const bool router = module != nullptr && module->kind == ModuleKind::Router;
    const bool experts = module != nullptr && isExpert(module->kind);
    // Tensors of what a rank routes by itself are smaller by the ranks that share the sequence, as their tokens are.
    const std::int64_t split = router || experts ? local.expertSplit() : 1;
    const std::int64_t tokens = m_activations.tokens(training) / split;
    const bool hasBoth = !work.reads.empty() && !work.writes.empty();

    std::int64_t in = 0;
    std::int64_t out = 0;
    if (router || !hasBoth) {
        in = module == nullptr ? arch.hidden : module->inFeatures;
        out = module == nullptr ? arch.vocab : module->outFeatures;
    } else {
        in = split * width(program, backward ? work.writes.front() : work.reads.front());
        out = split * width(program, backward ? work.reads.front() : work.writes.front());
        if (head && training.loss == LossKind::Fused)
            out *= lossChunks(arch);
    }
    MatrixProduct forward{1, tokens, out, in, m_activations.compute(), m_elementBytes};
    // TorchInductor pads what is not aligned (config.shape_padding). A chunk of the logits has rows as long as all.
    const bool chunked = head && training.loss == LossKind::Fused;
    const std::int64_t row = !chunked ? out : module == nullptr ? arch.vocab : module->outFeatures;
    forward.aligned = (training.compile && type.kind == LayerKind::Block) || aligned({in, row}, m_elementBytes);
    if (experts) { // one product an expert; every token goes to `routed` of them
        const std::int64_t routed = std::max<std::int64_t>(1, arch.expertsPerToken);
        forward.batch = std::max<std::int64_t>(1, module->numel / (module->outFeatures * module->inFeatures));
        const double busiest = local.expert > 1 ? local.expertImbalance : 1.0;
        const auto ofOne = [&](std::int64_t width) {
            return std::max<std::int64_t>(1, std::llround(static_cast<double>(width) / busiest) / routed);
        };
        forward.m = ceilDivide(std::llround(static_cast<double>(tokens * routed) * busiest), forward.batch);
        forward.n = ofOne(out);
        forward.k = ofOne(in);
    }
    const double inBytes = static_cast<double>(tokens * in * m_elementBytes);
    const double outBytes = static_cast<double>(tokens * out * m_elementBytes);
    Cost cost;
    const bool float8 = m_float8 && module != nullptr && type.kind == LayerKind::Block && !router && !experts;
    if (float8) {
        forward.dtype = DType::Fp8;
        if (work.half != Half::Second)
            cost += float8Casts(*module, inBytes, outBytes, backward);
    }
    const std::optional<Lora>& lora = training.lora;
    if (lora && lora->baseDtype && type.kind == LayerKind::Block && module != nullptr && module->frozen > 0 &&
        work.half != Half::Second) {
        // bitsandbytes writes the weight out in the compute dtype before each product
        const double perElement =
            static_cast<double>(bitsOf(*lora->baseDtype)) / 8 + static_cast<double>(m_elementBytes);
        cost += stream(perElement * static_cast<double>(module->frozen), 1);
    }
    if (!backward) {
        Cost made = product(forward);
        if (float8 && m_float8ByRow)
            made.seconds /= kRowwiseRate;
        cost += made;
    } else {
        const bool rescales = float8 && m_float8ByRow;
        if (!work.writes.empty() && work.half != Half::Second) {
            cost += product(
                {forward.batch, forward.m, forward.k, forward.n, forward.dtype, m_elementBytes, forward.aligned});
            if (rescales)
                cost += stream(2 * inBytes, 1);
        }
        const bool trains = module == nullptr ? m_tiedHeadTrains : module->trainable > 0 && module->loraRank == 0;
        if (trains && work.half != Half::First) {
            cost += product(
                {forward.batch, forward.k, forward.n, forward.m, forward.dtype, m_elementBytes, forward.aligned});
            if (rescales)
                cost += stream(2 * static_cast<double>(module->numel * m_elementBytes), 1);
        }
        if (module != nullptr && trainsBias(*module, type) && work.half != Half::First)
            cost += stream(outBytes, 1);
    }
    double beside = 0;
    for (const std::int16_t slot : work.again)
        beside += bytes(program, slot);
    if (work.kernels > 1)
        cost += stream(beside, work.kernels - 1);
    return cost;
}

/// Dynamic scaling by tensor (torchao.float8, the recipe of torchtitan): the largest value is found, then the tensor is
/// written in fp8; gradients and inputs of the weight's gradient also in the other order, which the product asks for.
/// The input's largest value comes out of the kernel that made it where blocks are compiled.
/// By row, a tensor is scaled along the side that its product sums over: one kernel finds the largest value of a row
/// and casts it. The other product that reads the tensor sums over its other side: the largest values are found anew,
/// and it is cast in the other order (torchao float8_linear.py, ScalingGranularity.AXISWISE).
Cost StepCosts::float8Casts(const LeafModule& module, double inBytes, double outBytes, bool backward) const
{
    const double c = static_cast<double>(m_elementBytes);
    const double scan = m_input.training.compile ? 0 : 1; // of activations
    const double weightBytes = static_cast<double>(module.numel) * c;
    if (m_float8ByRow) {
        const double otherOrder = 1 + (1 + 1 / c) / kScaledAcrossRate;
        if (!backward)
            return stream(inBytes * (scan + 1 / c) + weightBytes * (1 + 1 / c), 2);
        return stream(outBytes * (scan + 1 / c + otherOrder) + (inBytes + weightBytes) * otherOrder, 7);
    }
    const double weight = weightBytes * (2 + 1 / c);
    if (!backward)
        return stream(inBytes * (scan + 1 + 1 / c) + weight, m_input.training.compile ? 3 : 5);
    return stream(outBytes * (scan + 1 + 2 / c) + inBytes * 2 / c + weight, m_input.training.compile ? 4 : 7);
}

/// out += scale B A in, r ranks wide (peft lora.Linear): two thin products, the scaling and the sum.
Cost StepCosts::adapter(const LeafModule& module, bool backward) const
{
    const std::int64_t tokens = m_activations.tokens(m_input.training);
    const DType dtype = m_activations.compute();
    const std::int64_t c = m_elementBytes;
    const std::int64_t rank = module.loraRank;
    const double in = static_cast<double>(tokens * module.inFeatures * c);
    const double out = static_cast<double>(tokens * module.outFeatures * c);
    Cost cost;
    if (!backward) {
        cost += product({1, tokens, rank, module.inFeatures, dtype, c});
        cost += product({1, tokens, module.outFeatures, rank, dtype, c});
        cost += stream(5 * out, 2);
        return cost;
    }
    cost += stream(2 * out, 1);
    cost += product({1, tokens, rank, module.outFeatures, dtype, c}); // gradient of A's output
    cost += product({1, rank, module.outFeatures, tokens, dtype, c}); // of B
    cost += product({1, tokens, module.inFeatures, rank, dtype, c});  // of the input
    cost += product({1, module.inFeatures, rank, tokens, dtype, c});  // of A
    cost += stream(3 * in, 1);
    return cost;
}

Cost StepCosts::fusedAttention(bool backward) const
{
    const Architecture& arch = m_activations.model().architecture;
    const Training& training = m_input.training;
    const std::int64_t s = training.sequenceLength;
    const bool masked = training.attention == Attention::MaskedSdpa; // what a mask hides is computed all the same
    // Context-parallel ranks hold two pieces of every sequence each, so that the causal mask leaves all alike work.
    // Under Ulysses each has whole sequences of some heads.
    const LocalShape& local = m_activations.local();
    const bool byHeads = local.exchange == ContextExchange::Ulysses;
    const AttentionShape shape{training.microBatch,
                               byHeads ? ceilDivide(arch.heads, local.context) : arch.heads,
                               byHeads ? s : s / local.context,
                               s,
                               arch.headDim,
                               arch.valueHeadDim,
                               !masked};
    // shardrun's own backward adds in a fixed order anyway.
    const bool ordered = training.deterministic && training.implementation != Implementation::Shardrun;
    AttentionKernels generation = ordered ? AttentionKernels::Deterministic : AttentionKernels::Flash2;
    if (masked)
        generation = AttentionKernels::MemoryEfficient;
    // llm-foundry pinned flash-attn 1.0.9 and Triton's kernel of 2023 until its release 0.5.
    if (training.implementation == Implementation::LlmFoundry)
        generation = AttentionKernels::Flash1;
    const int kernels = backward ? 3 : 1; // row sums of out times its gradient, the rest, the query's gradient cast
    // shardrun's kernel skips what lies before a window; of others' that is not modelled.
    const double share = training.implementation == Implementation::Shardrun ? windowShare(arch, s) : 1;
    return {
        share * attentionSeconds(m_input.cluster.gpu, m_facts, m_activations.compute(), shape, backward, generation) +
            (kernels - 1) * m_facts.kernelSeconds,
        share * attentionFlops(shape, backward), kernels};
}

/// Attention spelled out: the whole square of scores, for every head.
Cost StepCosts::eagerProducts(const StepWork& work, bool backward) const
{
    const Architecture& arch = m_activations.model().architecture;
    const Training& training = m_input.training;
    const std::int64_t s = training.sequenceLength;
    const bool scores = work.kind == WorkKind::AttentionScores;
    const bool fp32 = scores && m_scoresInFp32;
    const std::int64_t each = fp32 ? 4 : m_elementBytes;
    const std::int64_t headDim = scores ? arch.headDim : arch.valueHeadDim;
    const std::int64_t batch = training.microBatch * arch.heads;
    const std::int64_t rows = s / m_activations.local().context; // queries of this rank
    const DType dtype = fp32 ? DType::Fp32 : m_activations.compute();
    const bool fits = training.compile || aligned({headDim, s}, each);
    const MatrixProduct square{batch, rows, s, headDim, dtype, each, fits}; // scores, or gradient of the probabilities
    const MatrixProduct tall{batch, rows, headDim, s,
                             dtype, each, fits}; // result, or gradient of queries, keys or values
    if (!backward)
        return product(scores ? square : tall);
    Cost cost = product(scores ? tall : square); // of queries; of the probabilities
    cost += product(tall);                       // of keys; of values
    return cost;
}

} // namespace shardwright
