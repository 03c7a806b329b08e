// deepseek_v2, deepseek_v3: multi-head latent attention (queries, keys and values through low-rank matrices), the
// first blocks dense, the others mixtures with shared experts. The router's e_score_correction_bias is a buffer, not a
// parameter; multi-token-prediction modules (num_nextn_predict_layers) are not built by transformers.

#include "core/model_families/families.hpp"

namespace shardwright {

namespace {

void addLatentAttention(LayerBuilder& block, const Architecture& a, bool bias)
{
    const std::int64_t queries = checkedMultiply(a.heads, a.headDim);
    if (a.qLoraRank == 0)
        block.linear("self_attn.q_proj", a.hidden, queries, false, ParameterRole::Attention);
    else
        block.linear("self_attn.q_a_proj", a.hidden, a.qLoraRank, bias, ParameterRole::Attention)
            .norm("self_attn.q_a_layernorm", a.qLoraRank, a.norm)
            .linear("self_attn.q_b_proj", a.qLoraRank, queries, false, ParameterRole::Attention);
    const std::int64_t keyAndValue = checkedMultiply(a.heads, checkedAdd(a.qkNopeHeadDim, a.valueHeadDim));
    block
        .linear("self_attn.kv_a_proj_with_mqa", a.hidden, checkedAdd(a.kvLoraRank, a.qkRopeHeadDim), bias,
                ParameterRole::Attention)
        .norm("self_attn.kv_a_layernorm", a.kvLoraRank, a.norm)
        .linear("self_attn.kv_b_proj", a.kvLoraRank, keyAndValue, false, ParameterRole::Attention)
        .linear("self_attn.o_proj", checkedMultiply(a.heads, a.valueHeadDim), a.hidden, bias, ParameterRole::Attention);
}

LayerType deepseekBlock(const Architecture& a, const char* blockClass, bool bias, bool sparse)
{
    LayerBuilder block(LayerKind::Block, "model.layers.{}", blockClass);
    block.norm("input_layernorm", a.hidden, a.norm);
    addLatentAttention(block, a, bias);
    block.norm("post_attention_layernorm", a.hidden, a.norm);
    if (!sparse) {
        addGatedMlp(block, "mlp", a.hidden, a.ffn, false, ParameterRole::Mlp);
        return block.build();
    }
    block.linear("mlp.gate", a.hidden, a.experts, false, ParameterRole::Router).mixtureOfExperts();
    addGatedMlp(block, "mlp.experts.{}", a.hidden, a.expertFfn, false, ParameterRole::Expert, a.experts);
    if (a.sharedExpertFfn > 0)
        addGatedMlp(block, "mlp.shared_experts", a.hidden, a.sharedExpertFfn, false, ParameterRole::SharedExpert);
    return block.build();
}

struct DeepseekStyle {
    const char* blockClass;
    std::int64_t sharedExperts; // class defaults of the configuration
    std::int64_t firstDense;
};

Model deepseekModel(const HfConfig& config, const DeepseekStyle& style)
{
    Architecture a;
    a.hidden = config.size({"hidden_size"}, "the width of the residual stream");
    a.layers = config.layers({"num_hidden_layers"});
    a.heads = config.size({"num_attention_heads"}, "the number of attention heads");
    a.kvHeads = a.heads;
    a.vocab = config.size({"vocab_size"}, "the number of tokens in the vocabulary");
    a.maxPositions = config.sizeOr({"max_position_embeddings"}, 0);
    a.tiedEmbedding = config.flag("tie_word_embeddings", false);
    a.attentionDropout = config.dropout("attention_dropout", 0);
    // An explicit null means that queries come from one full matrix; absent means the class default.
    const bool fullQueries = config.isNull("q_lora_rank");
    a.qLoraRank = fullQueries ? 0 : config.sizeOr({"q_lora_rank"}, 1536);
    a.kvLoraRank = config.size({"kv_lora_rank"}, "the rank of the compressed keys and values");
    a.qkNopeHeadDim = config.size({"qk_nope_head_dim"}, "the part of a query/key head without rotary positions");
    a.qkRopeHeadDim = config.size({"qk_rope_head_dim"}, "the part of a query/key head with rotary positions");
    a.valueHeadDim = config.size({"v_head_dim"}, "the size of a value head");
    a.ffn = config.size({"intermediate_size"}, "the width of the MLP of dense blocks");
    a.expertFfn = config.size({"moe_intermediate_size"}, "the width of each expert");
    a.experts = config.size({"n_routed_experts"}, "the number of routed experts of a block");
    a.expertsPerToken = config.size({"num_experts_per_tok"}, "the number of experts a token is routed to");
    const std::int64_t sharedExperts =
        config.isNull("n_shared_experts") ? 0 : config.sizeOr({"n_shared_experts"}, style.sharedExperts, 0);
    const std::int64_t firstDense = config.sizeOr({"first_k_dense_replace"}, style.firstDense, 0);
    // transformers has no moe_layer_freq; DeepSeek's own modelling code does, and every published config says 1.
    const std::int64_t frequency = config.sizeOr({"moe_layer_freq"}, 1);
    const bool bias = config.flag("attention_bias", false);
    config.expectRouting(a.expertsPerToken, a.experts);
    config.stopIfWrong();
    a.headDim = checkedAdd(a.qkNopeHeadDim, a.qkRopeHeadDim);
    a.sharedExpertFfn = checkedMultiply(a.expertFfn, sharedExperts);

    LayerBuilder embedding(LayerKind::Embedding, "model.embed_tokens");
    embedding.embedding("", a.vocab, a.hidden);
    LayerBuilder finalNorm(LayerKind::FinalNorm, "model.norm");
    finalNorm.norm("", a.hidden, a.norm);
    std::vector<bool> isSparse;
    for (std::int64_t i = 0; i < a.layers; ++i)
        isSparse.push_back(i >= firstDense && i % frequency == 0);
    return assembledMixed(a, embedding.build(), deepseekBlock(a, style.blockClass, bias, false),
                          deepseekBlock(a, style.blockClass, bias, true), isSparse, finalNorm.build(),
                          headLayer(a, "lm_head", false));
}

} // namespace

Model readDeepseekV2(const HfConfig& config)
{
    return deepseekModel(config, {"DeepseekV2DecoderLayer", 2, 0});
}

Model readDeepseekV3(const HfConfig& config)
{
    return deepseekModel(config, {"DeepseekV3DecoderLayer", 1, 3});
}

} // namespace shardwright
