// gemma, gemma2: Llama's block with wide heads, a tied head and (gemma2) norms after attention and MLP as well.

#include "core/model_families/families.hpp"

namespace shardwright {

namespace {

Model gemmaModel(const HfConfig& config, const char* blockClass, std::int64_t defaultKvHeads, bool sandwich)
{
    Architecture a = commonArchitecture(config, {.kvHeads = defaultKvHeads, .headDim = 256, .tied = true});
    a.ffn = config.size({"intermediate_size"}, "the width of the MLP");
    a.normsPerBlock = sandwich ? 4 : 2;
    const bool bias = config.flag("attention_bias", false);
    config.stopIfWrong();

    LayerBuilder embedding(LayerKind::Embedding, "model.embed_tokens");
    embedding.embedding("", a.vocab, a.hidden);

    LayerBuilder block(LayerKind::Block, "model.layers.{}", blockClass);
    block.norm("input_layernorm", a.hidden, a.norm);
    addAttention(block, a, {.qkvBias = bias, .outputBias = bias});
    block.norm("post_attention_layernorm", a.hidden, a.norm);
    if (sandwich)
        block.norm("pre_feedforward_layernorm", a.hidden, a.norm);
    addGatedMlp(block, "mlp", a.hidden, a.ffn, false, ParameterRole::Mlp);
    if (sandwich)
        block.norm("post_feedforward_layernorm", a.hidden, a.norm);

    LayerBuilder finalNorm(LayerKind::FinalNorm, "model.norm");
    finalNorm.norm("", a.hidden, a.norm);
    return assembled(a, embedding.build(), block.build(), finalNorm.build(), headLayer(a, "lm_head", false));
}

} // namespace

Model readGemma(const HfConfig& config)
{
    return gemmaModel(config, "GemmaDecoderLayer", 16, false);
}

Model readGemma2(const HfConfig& config)
{
    return gemmaModel(config, "Gemma2DecoderLayer", 4, true);
}

} // namespace shardwright
