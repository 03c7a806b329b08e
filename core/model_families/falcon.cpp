// falcon: fused qkv with one key/value head (7B), groups of them (40B, 180B) or as many as query heads (RW).

#include "core/model_families/families.hpp"

namespace shardwright {

Model readFalcon(const HfConfig& config)
{
    Architecture a;
    a.hidden = config.size({"hidden_size", "n_embed"}, "the width of the residual stream");
    a.layers = config.layers({"num_hidden_layers", "n_layer"});
    a.heads = config.size({"num_attention_heads", "n_head"}, "the number of attention heads");
    a.vocab = config.size({"vocab_size"}, "the number of tokens in the vocabulary");
    a.ffn = config.sizeOr({"ffn_hidden_size"}, checkedMultiply(4, a.hidden));
    a.maxPositions = config.sizeOr({"max_position_embeddings"}, 2048);
    a.norm = NormKind::LayerNorm;
    a.mlp = MlpKind::Plain;
    a.tiedEmbedding = config.flag("tie_word_embeddings", true);
    a.attentionDropout = config.dropout("attention_dropout", 0);
    a.residualDropout = config.dropout("hidden_dropout", 0);
    const bool bias = config.flag("bias", false);
    const bool grouped = config.flag("new_decoder_architecture", false);
    const bool multiQuery = config.flag("multi_query", true);
    a.parallelAttention = grouped || config.flag("parallel_attn", true);
    const std::int64_t groups = config.sizeOr({"num_kv_heads", "n_head_kv"}, a.heads);
    const std::int64_t norms = config.sizeOr({"num_ln_in_parallel_attn"}, grouped ? 2 : 1);
    config.expectDivides("num_attention_heads", a.heads, "hidden_size", a.hidden);
    if (grouped)
        config.expectDivides("num_kv_heads", groups, "num_attention_heads", a.heads);
    config.stopIfWrong();
    a.kvHeads = grouped ? groups : multiQuery ? 1 : a.heads;
    a.headDim = a.valueHeadDim = a.hidden / a.heads;
    const bool twoParallelNorms = grouped && norms == 2;
    a.normsPerBlock = twoParallelNorms || !a.parallelAttention ? 2 : 1;

    LayerBuilder embedding(LayerKind::Embedding, "transformer.word_embeddings");
    embedding.embedding("", a.vocab, a.hidden);

    const std::int64_t allHeads = checkedAdd(a.heads, checkedMultiply(2, a.kvHeads));
    LayerBuilder block(LayerKind::Block, "transformer.h.{}", "FalconDecoderLayer");
    block.norm(twoParallelNorms ? "ln_attn" : "input_layernorm", a.hidden, a.norm);
    if (twoParallelNorms)
        block.norm("ln_mlp", a.hidden, a.norm);
    block
        .linear("self_attention.query_key_value", a.hidden, checkedMultiply(allHeads, a.headDim), bias,
                ParameterRole::Attention)
        .linear("self_attention.dense", a.hidden, a.hidden, bias, ParameterRole::Attention);
    if (!a.parallelAttention)
        block.norm("post_attention_layernorm", a.hidden, a.norm);
    block.linear("mlp.dense_h_to_4h", a.hidden, a.ffn, bias, ParameterRole::Mlp)
        .linear("mlp.dense_4h_to_h", a.ffn, a.hidden, bias, ParameterRole::Mlp);

    LayerBuilder finalNorm(LayerKind::FinalNorm, "transformer.ln_f");
    finalNorm.norm("", a.hidden, a.norm);
    return assembled(a, embedding.build(), block.build(), finalNorm.build(), headLayer(a, "lm_head", false));
}

} // namespace shardwright
