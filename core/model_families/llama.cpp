// llama, mistral: pre-norm decoder, grouped-query attention, gated MLP, RMSNorm.

#include "core/model_families/families.hpp"

namespace shardwright {

namespace {

Model llamaLike(const Architecture& a, const char* blockClass, const AttentionStyle& attention, bool mlpBias)
{
    LayerBuilder embedding(LayerKind::Embedding, "model.embed_tokens");
    embedding.embedding("", a.vocab, a.hidden);

    LayerBuilder block(LayerKind::Block, "model.layers.{}", blockClass);
    block.norm("input_layernorm", a.hidden, a.norm);
    addAttention(block, a, attention);
    block.norm("post_attention_layernorm", a.hidden, a.norm);
    addGatedMlp(block, "mlp", a.hidden, a.ffn, mlpBias, ParameterRole::Mlp);

    LayerBuilder finalNorm(LayerKind::FinalNorm, "model.norm");
    finalNorm.norm("", a.hidden, a.norm);
    return assembled(a, embedding.build(), block.build(), finalNorm.build(), headLayer(a, "lm_head", false));
}

} // namespace

Model readLlama(const HfConfig& config)
{
    Architecture a = commonArchitecture(config, {});
    a.ffn = config.size({"intermediate_size"}, "the width of the MLP");
    const bool attentionBias = config.flag("attention_bias", false);
    const bool mlpBias = config.flag("mlp_bias", false);
    config.stopIfWrong();
    return llamaLike(a, "LlamaDecoderLayer", {.qkvBias = attentionBias, .outputBias = attentionBias}, mlpBias);
}

Model readMistral(const HfConfig& config)
{
    Architecture a = commonArchitecture(config, {.kvHeads = 8, .slidingWindow = 4096});
    a.ffn = config.size({"intermediate_size"}, "the width of the MLP");
    config.stopIfWrong();
    return llamaLike(a, "MistralDecoderLayer", {}, false);
}

} // namespace shardwright
