// phi3: Llama's block with q, k, v in one matrix and gate, up in another.

#include "core/model_families/families.hpp"

namespace shardwright {

Model readPhi3(const HfConfig& config)
{
    Architecture a = commonArchitecture(config, {});
    a.ffn = config.size({"intermediate_size"}, "the width of the MLP");
    a.attentionDropout = config.dropout("attention_dropout", 0);
    a.residualDropout = config.dropout("resid_pdrop", 0); // Phi3Model has no embedding dropout
    config.stopIfWrong();

    LayerBuilder embedding(LayerKind::Embedding, "model.embed_tokens");
    embedding.embedding("", a.vocab, a.hidden);

    const std::int64_t queries = checkedMultiply(a.heads, a.headDim);
    const std::int64_t keys = checkedMultiply(a.kvHeads, a.headDim);
    LayerBuilder block(LayerKind::Block, "model.layers.{}", "Phi3DecoderLayer");
    block.norm("input_layernorm", a.hidden, a.norm)
        .linear("self_attn.qkv_proj", a.hidden, checkedAdd(queries, checkedMultiply(2, keys)), false,
                ParameterRole::Attention)
        .linear("self_attn.o_proj", queries, a.hidden, false, ParameterRole::Attention)
        .norm("post_attention_layernorm", a.hidden, a.norm)
        .linear("mlp.gate_up_proj", a.hidden, checkedMultiply(2, a.ffn), false, ParameterRole::Mlp)
        .linear("mlp.down_proj", a.ffn, a.hidden, false, ParameterRole::Mlp);

    LayerBuilder finalNorm(LayerKind::FinalNorm, "model.norm");
    finalNorm.norm("", a.hidden, a.norm);
    return assembled(a, embedding.build(), block.build(), finalNorm.build(), headLayer(a, "lm_head", false));
}

} // namespace shardwright
