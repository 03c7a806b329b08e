// gpt2: learned positions, LayerNorm, fused qkv, plain MLP; its matrices are Conv1D, stored (in, out).

#include "core/model_families/families.hpp"

namespace shardwright {

Model readGpt2(const HfConfig& config)
{
    Architecture a;
    a.hidden = config.size({"n_embd", "hidden_size"}, "the width of the residual stream");
    a.layers = config.layers({"n_layer", "num_hidden_layers"});
    a.heads = config.size({"n_head", "num_attention_heads"}, "the number of attention heads");
    a.vocab = config.size({"vocab_size"}, "the number of tokens in the vocabulary");
    a.maxPositions = config.size({"n_positions", "max_position_embeddings"}, "the number of learned positions");
    a.ffn = config.sizeOr({"n_inner"}, checkedMultiply(4, a.hidden));
    a.norm = NormKind::LayerNorm;
    a.mlp = MlpKind::Plain;
    a.tiedEmbedding = config.flag("tie_word_embeddings", true);
    a.attentionDropout = config.dropout("attn_pdrop", 0.1);
    a.residualDropout = config.dropout("resid_pdrop", 0.1);
    a.embeddingDropout = config.dropout("embd_pdrop", 0.1);
    a.numerics.normEpsilon = config.numberOr("layer_norm_epsilon", 1e-5, 0, 1);
    a.numerics.initializerRange = config.numberOr("initializer_range", 0.02, 0, 1e3);
    const std::string activation = config.textOr("activation_function", "gelu_new");
    if (activation != "gelu_new" && activation != "gelu_pytorch_tanh") // the same function
        a.numerics.others.push_back("activation_function " + activation);
    if (!config.flag("scale_attn_weights", true))
        a.numerics.others.push_back("scale_attn_weights false");
    if (config.flag("scale_attn_by_inverse_layer_idx", false))
        a.numerics.others.push_back("scale_attn_by_inverse_layer_idx");
    config.expectDivides("n_head", a.heads, "n_embd", a.hidden);
    if (config.flag("add_cross_attention", false))
        config.cursor().complain("add_cross_attention is true", "a decoder without cross attention");
    config.stopIfWrong();
    a.kvHeads = a.heads;
    a.headDim = a.valueHeadDim = a.hidden / a.heads;

    LayerBuilder embedding(LayerKind::Embedding, "transformer");
    embedding.embedding("wte", a.vocab, a.hidden).embedding("wpe", a.maxPositions, a.hidden, ParameterRole::Position);

    LayerBuilder block(LayerKind::Block, "transformer.h.{}", "GPT2Block");
    block.norm("ln_1", a.hidden, a.norm)
        .conv1d("attn.c_attn", a.hidden, checkedMultiply(3, a.hidden), ParameterRole::Attention)
        .conv1d("attn.c_proj", a.hidden, a.hidden, ParameterRole::Attention)
        .norm("ln_2", a.hidden, a.norm)
        .conv1d("mlp.c_fc", a.hidden, a.ffn, ParameterRole::Mlp)
        .conv1d("mlp.c_proj", a.ffn, a.hidden, ParameterRole::Mlp);

    LayerBuilder finalNorm(LayerKind::FinalNorm, "transformer.ln_f");
    finalNorm.norm("", a.hidden, a.norm);
    return assembled(a, embedding.build(), block.build(), finalNorm.build(), headLayer(a, "lm_head", false));
}

} // namespace shardwright
