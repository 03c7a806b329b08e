// qwen2, qwen3 and their mixtures of experts. Qwen2 has biases on q, k and v only; Qwen3 has none but normalises
// queries and keys per head.

#include <algorithm>
#include <set>

#include "core/json_cursor.hpp"
#include "core/model_families/families.hpp"

namespace shardwright {

namespace {

constexpr std::int64_t kQwenWindow = 4096; // of Qwen2Config and Qwen3Config

struct QwenStyle {
    const char* blockClass;
    AttentionStyle attention;
    bool sharedExpert = false;
};

LayerType qwenBlock(const Architecture& a, const QwenStyle& style, bool sparse)
{
    LayerBuilder block(LayerKind::Block, "model.layers.{}", style.blockClass);
    block.norm("input_layernorm", a.hidden, a.norm);
    addAttention(block, a, style.attention);
    block.norm("post_attention_layernorm", a.hidden, a.norm);
    if (!sparse) {
        addGatedMlp(block, "mlp", a.hidden, a.ffn, false, ParameterRole::Mlp);
        return block.build();
    }
    block.linear("mlp.gate", a.hidden, a.experts, false, ParameterRole::Router).mixtureOfExperts();
    addGatedMlp(block, "mlp.experts.{}", a.hidden, a.expertFfn, false, ParameterRole::Expert, a.experts);
    if (style.sharedExpert) {
        addGatedMlp(block, "mlp.shared_expert", a.hidden, a.sharedExpertFfn, false, ParameterRole::SharedExpert);
        block.linear("mlp.shared_expert_gate", a.hidden, 1, false, ParameterRole::Router);
    }
    return block.build();
}

Model qwenModel(const Architecture& a, const QwenStyle& style, const std::vector<bool>& isSparse)
{
    LayerBuilder embedding(LayerKind::Embedding, "model.embed_tokens");
    embedding.embedding("", a.vocab, a.hidden);
    LayerBuilder finalNorm(LayerKind::FinalNorm, "model.norm");
    finalNorm.norm("", a.hidden, a.norm);
    const bool anySparse = std::find(isSparse.begin(), isSparse.end(), true) != isSparse.end();
    const LayerType dense = qwenBlock(a, style, false);
    return assembledMixed(a, embedding.build(), dense, anySparse ? qwenBlock(a, style, true) : dense, isSparse,
                          finalNorm.build(), headLayer(a, "lm_head", false));
}

Model qwenDense(const Architecture& a, const QwenStyle& style)
{
    return qwenModel(a, style, std::vector<bool>(static_cast<std::size_t>(a.layers), false));
}

/// Which blocks are mixtures: every decoder_sparse_step-th, counted from 1, but those in mlp_only_layers.
std::vector<bool> readSparsity(const HfConfig& config, Architecture& a)
{
    a.ffn = config.size({"intermediate_size"}, "the width of the MLP of dense blocks");
    a.expertFfn = config.size({"moe_intermediate_size"}, "the width of each expert");
    a.experts = config.size({"num_experts"}, "the number of experts of a block");
    a.expertsPerToken = config.size({"num_experts_per_tok"}, "the number of experts a token is routed to");
    config.expectRouting(a.expertsPerToken, a.experts);
    const std::int64_t step = config.sizeOr({"decoder_sparse_step"}, 1);
    std::set<std::int64_t> dense;
    if (const auto list = config.cursor().find("mlp_only_layers"))
        if (list->expectArray())
            for (const JsonCursor& element : list->elements())
                if (const auto index = element.asInteger(0, kMaximumLayers))
                    dense.insert(*index);
    config.stopIfWrong();
    std::vector<bool> isSparse;
    for (std::int64_t i = 0; i < a.layers; ++i)
        isSparse.push_back(dense.count(i) == 0 && (i + 1) % step == 0);
    return isSparse;
}

} // namespace

Model readQwen2(const HfConfig& config)
{
    Architecture a = commonArchitecture(config, {.kvHeads = 32, .slidingWindow = kQwenWindow, .windowAsked = true});
    a.ffn = config.size({"intermediate_size"}, "the width of the MLP");
    config.stopIfWrong();
    return qwenDense(a, {"Qwen2DecoderLayer", {.qkvBias = true}});
}

Model readQwen3(const HfConfig& config)
{
    Architecture a =
        commonArchitecture(config, {.kvHeads = 32, .headDim = 128, .slidingWindow = kQwenWindow, .windowAsked = true});
    a.ffn = config.size({"intermediate_size"}, "the width of the MLP");
    a.qkNorm = true;
    const bool bias = config.flag("attention_bias", false);
    config.stopIfWrong();
    return qwenDense(a, {"Qwen3DecoderLayer", {.qkvBias = bias, .outputBias = bias, .qkNormSize = a.headDim}});
}

Model readQwen2Moe(const HfConfig& config)
{
    Architecture a = commonArchitecture(config, {.kvHeads = 16});
    a.sharedExpertFfn = config.size({"shared_expert_intermediate_size"}, "the width of the shared expert");
    const bool bias = config.flag("qkv_bias", true);
    const std::vector<bool> isSparse = readSparsity(config, a);
    return qwenModel(a, {"Qwen2MoeDecoderLayer", {.qkvBias = bias}, true}, isSparse);
}

Model readQwen3Moe(const HfConfig& config)
{
    Architecture a = commonArchitecture(config, {.kvHeads = 4});
    a.qkNorm = true;
    const bool bias = config.flag("attention_bias", false);
    const std::vector<bool> isSparse = readSparsity(config, a);
    return qwenModel(a, {"Qwen3MoeDecoderLayer", {.qkvBias = bias, .outputBias = bias, .qkNormSize = a.headDim}},
                     isSparse);
}

} // namespace shardwright
