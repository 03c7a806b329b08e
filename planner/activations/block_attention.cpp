// Attention of a block: projections, rotary embedding, the three ways to attend, and their backward.

#include "planner/activations/block_writer.hpp"

namespace shardwright {

namespace {

using C = Category;

// Sources: "HF" the modelling code of transformers, "FA" flash-attention's autograd function (torch's
// _scaled_dot_product_flash_attention keeps the same), "torch" ATen's derivatives.yaml.
constexpr BufferSpec kQueryLinear{"query before rotary embedding", "c T a d", "HF apply_rotary_pos_emb",
                                  C::Temporaries};
constexpr BufferSpec kKeyLinear{"key before rotary embedding", "c T a_kv d", "HF apply_rotary_pos_emb", C::Temporaries};
constexpr BufferSpec kFusedQkv{"query, key and value as one projection made them", "c T (a + 2 a_kv) d",
                               "HF GPTNeoXAttention, Phi3Attention: the value is a view of it", C::Activations};
constexpr BufferSpec kRotary{"products of the rotary embedding", "c T a d", "HF apply_rotary_pos_emb", C::Temporaries};
constexpr BufferSpec kQuery{"query", "c T a d", "FA saves q", C::Activations};
constexpr BufferSpec kKey{"key", "c T a_kv d", "FA saves k", C::Activations};
constexpr BufferSpec kValue{"value", "c T a_kv d", "FA saves v", C::Activations};
constexpr BufferSpec kKeyRepeated{"key repeated over the query heads", "c T a d", "HF repeat_kv", C::Activations};
constexpr BufferSpec kValueRepeated{"value repeated over the query heads", "c T a d", "HF repeat_kv", C::Activations};
constexpr BufferSpec kContiguous{"query, key or value laid out for the matrix product", "c T a d (4 T a d in fp32)",
                                 "torch matmul copies transposed operands of bmm", C::Activations};
constexpr BufferSpec kLatentQuery{"compressed query", "c T r_q", "HF DeepseekV3Attention", C::Activations};
constexpr BufferSpec kLatentKeyValue{"compressed key-value", "c T (r_kv + d_r)", "HF DeepseekV3Attention",
                                     C::Activations};
constexpr BufferSpec kKeyValueExpanded{"keys without position and values", "c T a (d_n + d_v)",
                                       "HF DeepseekV3Attention.expand_kv: the value is a view of it", C::Activations};
constexpr BufferSpec kScores{"attention scores", "c a s^2 b", "HF eager_attention_forward", C::Temporaries};
constexpr BufferSpec kScoresFp32{"fp32 copy of the attention scores", "4 a s^2 b", "torch softmax with dtype",
                                 C::Temporaries};
constexpr BufferSpec kSoftcap{"tanh of the attention scores", "c a s^2 b", "HF gemma2 attn_logit_softcapping",
                              C::Activations};
constexpr BufferSpec kSoftmax{"attention probabilities as softmax makes them", "4 a s^2 b (c a s^2 b without upcast)",
                              "HF eager_attention_forward", C::Activations};
constexpr BufferSpec kProbabilities{"attention probabilities", "c a s^2 b", "HF eager_attention_forward",
                                    C::Activations};
constexpr BufferSpec kAttentionMask{"attention dropout mask", "a s^2 b", "torch native_dropout", C::Activations};
constexpr BufferSpec kDropped{"attention probabilities after dropout", "c a s^2 b", "torch native_dropout",
                              C::Activations};
constexpr BufferSpec kProduct{"attention output before its heads are put together", "c T a d",
                              "HF eager_attention_forward: transpose, contiguous", C::Temporaries};
constexpr BufferSpec kLogSumExp{"softmax log-sum-exp", "4 T a", "FA saves softmax_lse", C::Activations};
constexpr BufferSpec kAttentionOut{"attention output", "c T a d", "FA saves out; torch linear", C::Activations};
constexpr BufferSpec kAttentionHeads{"attention output, head by head", "c T a d",
                                     "FA saves out; its layout follows the query's, which concatenation made",
                                     C::Activations};
constexpr BufferSpec kProjected{"output projection", "c T H", "torch linear", C::Activations};
constexpr BufferSpec kGradHidden{"gradient of hidden states", "c T H", "torch autograd", C::Temporaries};
constexpr BufferSpec kGradHeads{"gradient of query or attention output", "c T a d", "torch autograd", C::Temporaries};
constexpr BufferSpec kGradKeyValue{"gradient of key or value", "c T a_kv d", "torch autograd", C::Temporaries};
constexpr BufferSpec kGradLatent{"gradient of a compressed query or key-value", "c T r", "torch autograd",
                                 C::Temporaries};
constexpr BufferSpec kGradFused{"gradient of the fused projection", "c T (a + 2 a_kv) d", "torch autograd",
                                C::Temporaries};
constexpr BufferSpec kGradFlash{"fp32 accumulator of the query's gradient", "4 T a d", "FA dq_accum", C::Temporaries};
constexpr BufferSpec kGradScores{"gradient of attention scores", "4 a s^2 b or c a s^2 b", "torch autograd",
                                 C::Temporaries};

constexpr BufferSpec kHeadsOfSequence{"query, key or value of whole sequences, some heads", "c T a d",
                                      "deepspeed/sequence/layer.py DistributedAttention", C::Activations};
constexpr BufferSpec kContextOfSequence{"attention output of whole sequences, some heads", "c T a d",
                                        "deepspeed/sequence/layer.py DistributedAttention", C::Activations};
constexpr BufferSpec kGradOfSequence{"gradient on its way between sequence-parallel ranks", "c T a d",
                                     "deepspeed/sequence/layer.py _SeqAllToAll", C::Temporaries};

} // namespace

void BlockWriter::attention(const NormTensors& before)
{
    m_attentionInput = gatherInput(before.out);
    if (latent())
        projectLatent(m_attentionInput);
    else
        project(m_attentionInput);
    m_queryRead = m_query;
    m_keyRead = m_key;
    m_valueRead = m_value;
    if (m_rules.repeatsHeads)
        repeatHeads();
    if (ulysses()) {
        const bool fused = m_queryRead == m_valueRead; // one tensor holds all three
        const std::int64_t keys = m_rules.repeatsHeads ? queryWidth() : keyWidth();
        const std::int64_t values = m_rules.repeatsHeads ? outWidth() : valueWidth();
        m_queryRead = exchangeHeads(true, m_queryRead, kHeadsOfSequence,
                                    fused ? checkedAdd(checkedAdd(queryWidth(), keys), values) : queryWidth());
        m_keyRead = fused ? m_queryRead : exchangeHeads(true, m_keyRead, kHeadsOfSequence, keys);
        m_valueRead = fused ? m_queryRead : exchangeHeads(true, m_valueRead, kHeadsOfSequence, values);
    }
    exchangeKeysAndValues();
    m_attentionOut = tensor(kAttentionOut, outWidth());
    m_attentionHeads = m_attentionOut;
    if (eager()) {
        eagerAttention(before.out);
    } else {
        m_logSumExp = tensor(kLogSumExp, m_arch.heads, 4);
        if (m_rules.copiesAttentionOut || ulysses())
            m_attentionHeads = tensor(kAttentionHeads, outWidth());
        m_program.forward(-1, {m_queryRead, m_keyRead, m_valueRead}, {m_attentionHeads, m_logSumExp})
            .is(WorkKind::Attention);
        if (m_exchanged >= 0) // the ring ends with the last piece of attention
            m_program.forward(-1, {m_exchanged}, {}).is(WorkKind::Nothing);
        if (ulysses())
            m_attentionOut = exchangeHeads(true, m_attentionHeads, kContextOfSequence, outWidth());
        else
            m_program.forward(-1, {m_attentionHeads}, {m_attentionOut});
    }
    const int out = find(ModuleKind::AttentionOut);
    m_attentionProjected = wholeHidden(kProjected);
    m_program.forward(out, {m_attentionOut}, {m_attentionProjected}, {before.out});
    adapter(out);
    m_attentionProjected = reduceOutput(m_attentionProjected);
    m_attentionProjected = dropout(m_attentionProjected, m_attentionResidualMask);
}

/// Projections in the model's own order; a fused one makes all three.
void BlockWriter::project(int normOut)
{
    const int projections = countOf(ModuleKind::AttentionIn);
    const bool normed = find(ModuleKind::AttentionNorm) >= 0;
    const bool later = m_rules.rotary || normed; // query and key change after the projection
    if (projections == 1) {
        const int module = find(ModuleKind::AttentionIn);
        m_fusedQkv = tensor(kFusedQkv, checkedAdd(checkedAdd(queryWidth(), keyWidth()), valueWidth()));
        m_program.forward(module, {normOut}, {m_fusedQkv});
        adapter(module);
        m_query = m_key = m_value = m_queryLinear = m_keyLinear = m_fusedQkv;
        if (m_rules.copiesFusedQkv) {
            m_value = tensor(kValue, valueWidth());
            m_program.forward(-1, {m_fusedQkv}, {m_value});
        }
    } else {
        m_queryLinear = tensor(later ? kQueryLinear : kQuery, queryWidth());
        m_keyLinear = tensor(later ? kKeyLinear : kKey, keyWidth());
        m_query = m_queryLinear;
        m_key = m_keyLinear;
        m_value = tensor(kValue, valueWidth());
        for (int i = 0; i < projections; ++i) {
            const int module = find(ModuleKind::AttentionIn, i);
            m_program.forward(module, {normOut}, {i == 0 ? m_queryLinear : i == 1 ? m_keyLinear : m_value});
            adapter(module);
        }
    }
    if (normed) {
        m_queryNorm = normOf(find(ModuleKind::AttentionNorm, 0), m_queryLinear, queryWidth(), m_arch.heads);
        m_keyNorm = normOf(find(ModuleKind::AttentionNorm, countOf(ModuleKind::AttentionNorm) - 1), m_keyLinear,
                           keyWidth(), m_arch.kvHeads);
        m_query = m_queryNorm.out;
        m_key = m_keyNorm.out;
    }
    if (m_rules.rotary)
        rotate();
}

void BlockWriter::rotate()
{
    const int queryBefore = m_query;
    const int keyBefore = m_key;
    m_query = tensor(kQuery, queryWidth());
    m_key = tensor(kKey, keyWidth());
    if (m_training.compile) {
        m_program.forward(-1, {queryBefore}, {m_query});
        m_program.forward(-1, {keyBefore}, {m_key});
        return;
    }
    // q * cos, rotate_half(q), rotate_half(q) * sin, their sum; the caller's names hold both inputs until the end.
    const auto turn = [&](int before, int after, std::int64_t width) {
        const int timesCos = tensor(kRotary, width);
        const int halves = tensor(kRotary, width);
        const int timesSin = tensor(kRotary, width);
        m_program.forward(-1, {before}, {timesCos, halves, timesSin, after}, {queryBefore})
            .kernels(5, {before, timesCos, halves, timesSin});
    };
    turn(queryBefore, m_query, queryWidth());
    turn(keyBefore, m_key, keyWidth());
}

/// Multi-head latent attention: queries, keys and values through low-rank matrices.
void BlockWriter::projectLatent(int normOut)
{
    int index = 0;
    m_queryLinear = tensor(kQueryLinear, queryWidth());
    if (m_arch.qLoraRank > 0) {
        const int compressed = tensor(kLatentQuery, m_arch.qLoraRank);
        m_program.forward(find(ModuleKind::AttentionIn, index++), {normOut}, {compressed});
        m_queryLatent = normOf(find(ModuleKind::AttentionNorm, 0), compressed, m_arch.qLoraRank, 1);
        m_program.forward(find(ModuleKind::AttentionIn, index++), {m_queryLatent.out}, {m_queryLinear});
    } else {
        m_program.forward(find(ModuleKind::AttentionIn, index++), {normOut}, {m_queryLinear});
    }
    const int compressed = tensor(kLatentKeyValue, checkedAdd(m_arch.kvLoraRank, m_arch.qkRopeHeadDim));
    m_program.forward(find(ModuleKind::AttentionIn, index++), {normOut}, {compressed});
    m_keyValueLatent = normOf(find(ModuleKind::AttentionNorm, countOf(ModuleKind::AttentionNorm) - 1), compressed,
                              m_arch.kvLoraRank, 1);
    const int expanded =
        tensor(kKeyValueExpanded, checkedMultiply(m_arch.heads, checkedAdd(m_arch.qkNopeHeadDim, m_arch.valueHeadDim)));
    m_query = tensor(kQuery, queryWidth());
    m_key = tensor(kKey, keyWidth());
    m_program.forward(-1, {m_queryLinear}, {m_query});
    m_program.forward(find(ModuleKind::AttentionIn, index), {m_keyValueLatent.out}, {expanded});
    m_program.forward(-1, {expanded, compressed}, {m_key});
    m_value = expanded;
    for (int i = 0; i <= index; ++i)
        adapter(find(ModuleKind::AttentionIn, i));
}

void BlockWriter::repeatHeads()
{
    m_keyRead = tensor(kKeyRepeated, queryWidth());
    m_valueRead = tensor(kValueRepeated, outWidth());
    m_program.forward(-1, {m_key}, {m_keyRead});
    m_program.forward(-1, {m_value}, {m_valueRead});
}

/// `normOut` is an argument of the attention module's forward.
void BlockWriter::eagerAttention(int normOut)
{
    // Megatron's core (megatron/core/transformer/dot_product_attention.py) multiplies strided views, scales within the
    // product and masks within its softmax kernel: as few tensors as a compiled graph makes.
    const bool compiled = m_training.compile || m_training.implementation == Implementation::Megatron;
    const std::int64_t each = m_rules.scoresInFp32 ? 4 : m_c; // of queries, keys and scores
    if (!compiled) {
        m_queryRead = tensor(kContiguous, queryWidth(), each);
        m_program.forward(-1, {m_query}, {m_queryRead});
        if (m_keyRead == m_key) {
            m_keyRead = tensor(kContiguous, queryWidth(), each);
            m_program.forward(-1, {m_key}, {m_keyRead});
        }
    }
    const bool upcast = m_rules.softmax == SoftmaxKind::Upcast && each != 4;
    // Arguments and results of repeat_kv stay named until the function returns; a compiled graph has no names.
    const int query = compiled ? -1 : m_query;
    const int key = compiled ? -1 : m_key;
    const int repeated = compiled || !m_rules.repeatsHeads ? -1 : m_keyRead;
    const int value = m_value;
    int scores = square(kScores, each);
    m_program.forward(-1, {m_queryRead, m_keyRead}, {scores}, {query, key, value, normOut})
        .is(WorkKind::AttentionScores);
    if (!compiled)
        for (int rebinding = 0; rebinding < 2; ++rebinding) { // times the scale, plus the mask
            const int next = square(kScores, each);
            m_program.forward(-1, {scores}, {next});
            scores = next;
        }
    if (m_rules.softcap) {
        m_softcap = square(kSoftcap, m_c);
        m_program.forward(-1, {scores}, {m_softcap}).kernels(2, {m_softcap, m_softcap}); // divided, then tanh
        scores = square(kScores, m_c);
        m_program.forward(-1, {m_softcap}, {scores});
    }
    m_softmax = square(kSoftmax, upcast ? 4 : each);
    const int fp32 = upcast && !compiled ? square(kScoresFp32, 4) : -1;
    m_program.forward(-1, {scores}, {fp32, m_softmax}, {query, key, value}).kernels(fp32 >= 0 ? 2 : 1, {fp32});
    m_probabilities = m_softmax;
    if (upcast || (each == 4 && m_c != 4)) {
        m_probabilities = square(kProbabilities, m_c);
        m_program.forward(-1, {m_softmax}, {m_probabilities}, {scores});
    }
    m_dropped = m_probabilities;
    if (m_arch.attentionDropout > 0) {
        m_attentionMask = square(kAttentionMask, 1);
        m_dropped = square(kDropped, m_c);
        m_program.forward(-1, {m_probabilities}, {m_dropped, m_attentionMask});
    }
    if (!compiled && m_valueRead == m_value) {
        m_valueRead = tensor(kContiguous, outWidth());
        m_program.forward(-1, {m_value}, {m_valueRead});
    }
    const int product = tensor(kProduct, outWidth());
    m_program.forward(-1, {m_dropped, m_valueRead}, {product}, {query, key, value, repeated, normOut})
        .is(WorkKind::AttentionContext);
    m_program.forward(-1, {product}, {m_attentionOut});
}

int BlockWriter::attentionBackward(const NormTensors& before, int gradOut)
{
    const int grad = gatherGradient(dropoutBackward(gradOut, m_attentionResidualMask));
    int gradAttention = tensor(kGradHeads, outWidth());
    m_program.backward(find(ModuleKind::AttentionOut), {grad, ifTrains(ModuleKind::AttentionOut, m_attentionOut)},
                       {gradAttention});
    if (ulysses())
        gradAttention = exchangeHeads(false, gradAttention, kGradOfSequence, outWidth());
    int gradQuery = tensor(kGradHeads, queryWidth());
    int gradKey =
        tensor(m_rules.repeatsHeads ? kGradHeads : kGradKeyValue, m_rules.repeatsHeads ? queryWidth() : keyWidth());
    int gradValue =
        tensor(m_rules.repeatsHeads ? kGradHeads : kGradKeyValue, m_rules.repeatsHeads ? outWidth() : valueWidth());
    if (eager()) {
        eagerAttentionBackward(gradAttention, gradQuery, gradKey, gradValue);
    } else {
        exchangeKeysAndValuesBackward();
        const int accumulator = tensor(kGradFlash, queryWidth(), 4);
        m_program
            .backward(-1, {gradAttention, m_queryRead, m_keyRead, m_valueRead, m_attentionHeads, m_logSumExp},
                      {accumulator, gradQuery, gradKey, gradValue})
            .is(WorkKind::Attention);
        finishExchange(gradKey);
    }
    if (ulysses()) {
        gradQuery = exchangeHeads(false, gradQuery, kGradOfSequence, queryWidth());
        gradKey = exchangeHeads(false, gradKey, kGradOfSequence, m_rules.repeatsHeads ? queryWidth() : keyWidth());
        gradValue = exchangeHeads(false, gradValue, kGradOfSequence, m_rules.repeatsHeads ? outWidth() : valueWidth());
    }
    if (m_rules.repeatsHeads) {
        const int summedKey = tensor(kGradKeyValue, keyWidth());
        const int summedValue = tensor(kGradKeyValue, valueWidth());
        m_program.backward(-1, {gradKey}, {summedKey});
        m_program.backward(-1, {gradValue}, {summedValue});
        gradKey = summedKey;
        gradValue = summedValue;
    }
    if (m_rules.rotary) {
        gradKey = rotateBackward(gradKey, kGradKeyValue, keyWidth());
        gradQuery = rotateBackward(gradQuery, kGradHeads, queryWidth());
    }
    const int normOut = ifTrains(ModuleKind::AttentionIn, before.out);
    return latent() ? latentBackward(normOut, gradQuery, gradKey, gradValue)
                    : projectionsBackward(normOut, gradQuery, gradKey, gradValue);
}

void BlockWriter::eagerAttentionBackward(int gradOut, int gradQuery, int gradKey, int gradValue)
{
    int grad = square(kGradScores, m_c);
    m_program.backward(-1, {gradOut, m_valueRead, m_dropped}, {grad, gradValue}).is(WorkKind::AttentionContext);
    const auto next = [&](std::int64_t each, int read) {
        const int made = square(kGradScores, each);
        m_program.backward(-1, {grad, read}, {made});
        grad = made;
    };
    if (m_attentionMask >= 0)
        next(m_c, m_attentionMask);
    const std::int64_t inner = m_rules.softmax == SoftmaxKind::Upcast || m_rules.scoresInFp32 ? 4 : m_c;
    if (inner != m_c)
        next(inner, -1);
    next(inner, m_softmax);
    const std::int64_t each = m_rules.scoresInFp32 ? 4 : m_c;
    if (inner != each)
        next(each, -1);
    if (m_softcap >= 0)
        next(m_c, m_softcap);
    if (!m_training.compile && m_training.implementation != Implementation::Megatron)
        next(each, -1); // the scale
    m_program.backward(-1, {grad, m_queryRead, m_keyRead}, {gradQuery, gradKey}).is(WorkKind::AttentionScores);
}

int BlockWriter::rotateBackward(int grad, const BufferSpec& spec, std::int64_t width)
{
    const int result = tensor(spec, width);
    if (m_training.compile) {
        m_program.backward(-1, {grad}, {result});
    } else {
        const int timesSin = tensor(kRotary, width);
        const int halves = tensor(kRotary, width);
        m_program.backward(-1, {grad}, {timesSin, halves, result}).kernels(5, {grad, timesSin, halves, result, result});
    }
    return result;
}

/// Input gradients of the projections add up in place.
int BlockWriter::projectionsBackward(int normOut, int gradQuery, int gradKey, int gradValue)
{
    if (m_queryNorm.module >= 0) {
        const int throughKey = tensor(kGradKeyValue, keyWidth());
        normBackward(m_context, m_program, m_type, m_keyNorm, keyWidth(), gradKey, throughKey);
        const int throughQuery = tensor(kGradHeads, queryWidth());
        normBackward(m_context, m_program, m_type, m_queryNorm, queryWidth(), gradQuery, throughQuery);
        gradKey = throughKey;
        gradQuery = throughQuery;
    }
    const int projections = countOf(ModuleKind::AttentionIn);
    if (projections > 1 && local().splitsTensors()) {
        std::vector<Branch> branches;
        for (int i = projections - 1; i >= 0; --i)
            branches.push_back({find(ModuleKind::AttentionIn, i), i == 0 ? gradQuery : i == 1 ? gradKey : gradValue});
        return columnBackward(branches, normOut, m_attentionInput, kGradHidden);
    }
    const int sum = hidden(kGradHidden);
    if (projections == 1) {
        const int gradFused = tensor(kGradFused, checkedAdd(checkedAdd(queryWidth(), keyWidth()), valueWidth()));
        m_program.backward(-1, {gradQuery, gradKey, gradValue}, {gradFused});
        if (local().splitsTensors())
            return columnBackward({{find(ModuleKind::AttentionIn), gradFused}}, normOut, m_attentionInput, kGradHidden);
        m_program.backward(find(ModuleKind::AttentionIn), {gradFused, normOut}, {sum});
        return sum;
    }
    for (int i = projections - 1; i >= 0; --i) {
        const int module = find(ModuleKind::AttentionIn, i);
        const int read = m_modules[static_cast<std::size_t>(module)].needsInput() ? normOut : -1;
        const bool first = i == projections - 1;
        const int addend = first ? sum : wholeHidden(kGradHidden);
        ProgramStep& product = m_program.backward(module,
                                                  {i == 0   ? gradQuery
                                                   : i == 1 ? gradKey
                                                            : gradValue,
                                                   read},
                                                  {addend}, {sum});
        if (!first)
            product.kernels(2, {sum, sum, addend});
    }
    return sum;
}

int BlockWriter::latentBackward(int normOut, int gradQuery, int gradKey, int gradValue)
{
    int index = countOf(ModuleKind::AttentionIn) - 1;
    const int gradExpanded =
        tensor(kGradFused, checkedMultiply(m_arch.heads, checkedAdd(m_arch.qkNopeHeadDim, m_arch.valueHeadDim)));
    m_program.backward(-1, {gradKey, gradValue}, {gradExpanded});
    const int gradLatent = tensor(kGradLatent, m_arch.kvLoraRank);
    m_program.backward(find(ModuleKind::AttentionIn, index--), {gradExpanded, m_keyValueLatent.out}, {gradLatent});
    const int gradCompressed = tensor(kGradLatent, checkedAdd(m_arch.kvLoraRank, m_arch.qkRopeHeadDim));
    normBackward(m_context, m_program, m_type, m_keyValueLatent, m_arch.kvLoraRank, gradLatent, gradCompressed);
    const int sum = wholeHidden(kGradHidden);
    m_program.backward(find(ModuleKind::AttentionIn, index--), {gradCompressed, normOut}, {sum});
    int gradQueryInput = gradQuery;
    if (m_arch.qLoraRank > 0) {
        const int gradOut = tensor(kGradLatent, m_arch.qLoraRank);
        m_program.backward(find(ModuleKind::AttentionIn, index--), {gradQuery, m_queryLatent.out}, {gradOut});
        gradQueryInput = tensor(kGradLatent, m_arch.qLoraRank);
        normBackward(m_context, m_program, m_type, m_queryLatent, m_arch.qLoraRank, gradOut, gradQueryInput);
    }
    const int addend = wholeHidden(kGradHidden);
    m_program.backward(find(ModuleKind::AttentionIn, index), {gradQueryInput, normOut}, {addend}, {sum})
        .kernels(2, {sum, sum, addend});
    return reduceGradient(sum, false);
}

} // namespace shardwright
