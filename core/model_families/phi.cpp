// phi: attention and a plain MLP in parallel behind one LayerNorm, biases everywhere, the head's too.

#include "core/model_families/families.hpp"

namespace shardwright {

Model readPhi(const HfConfig& config)
{
    Architecture a = commonArchitecture(config, {});
    a.ffn = config.size({"intermediate_size"}, "the width of the MLP");
    a.norm = NormKind::LayerNorm;
    a.mlp = MlpKind::Plain;
    a.parallelAttention = true;
    a.normsPerBlock = 1;
    a.attentionDropout = config.dropout("attention_dropout", 0);
    a.residualDropout = config.dropout("resid_pdrop", 0);
    a.embeddingDropout = config.dropout("embd_pdrop", 0);
    a.qkNorm = config.flag("qk_layernorm", false);
    config.stopIfWrong();

    LayerBuilder embedding(LayerKind::Embedding, "model.embed_tokens");
    embedding.embedding("", a.vocab, a.hidden);

    LayerBuilder block(LayerKind::Block, "model.layers.{}", "PhiDecoderLayer");
    block.norm("input_layernorm", a.hidden, a.norm);
    addAttention(block, a,
                 {.qkvBias = true,
                  .outputBias = true,
                  .output = "dense",
                  // PhiAttention sizes these norms by hidden_size / num_attention_heads, whatever head_dim says.
                  .qkNormSize = a.qkNorm ? a.hidden / a.heads : 0,
                  .queryNorm = "q_layernorm",
                  .keyNorm = "k_layernorm"});
    block.linear("mlp.fc1", a.hidden, a.ffn, true, ParameterRole::Mlp)
        .linear("mlp.fc2", a.ffn, a.hidden, true, ParameterRole::Mlp);

    LayerBuilder finalNorm(LayerKind::FinalNorm, "model.final_layernorm");
    finalNorm.norm("", a.hidden, a.norm);
    return assembled(a, embedding.build(), block.build(), finalNorm.build(), headLayer(a, "lm_head", true));
}

} // namespace shardwright
