// mixtral: Mistral's attention, every MLP a mixture of experts. Experts are separate modules w1 (gate), w3 (up) and w2
// (down), as in checkpoints and in transformers 4; transformers 5 fuses them when it loads, without changing a count.

#include "core/model_families/families.hpp"

namespace shardwright {

Model readMixtral(const HfConfig& config)
{
    Architecture a = commonArchitecture(config, {.kvHeads = 8});
    a.expertFfn = config.size({"intermediate_size"}, "the width of each expert");
    a.experts = config.size({"num_local_experts"}, "the number of experts of a block");
    a.expertsPerToken = config.size({"num_experts_per_tok"}, "the number of experts a token is routed to");
    config.expectRouting(a.expertsPerToken, a.experts);
    config.stopIfWrong();

    LayerBuilder embedding(LayerKind::Embedding, "model.embed_tokens");
    embedding.embedding("", a.vocab, a.hidden);

    LayerBuilder block(LayerKind::Block, "model.layers.{}", "MixtralDecoderLayer");
    block.norm("input_layernorm", a.hidden, a.norm);
    addAttention(block, a, {});
    const std::string expert = "block_sparse_moe.experts.{}.";
    block.norm("post_attention_layernorm", a.hidden, a.norm)
        .linear("block_sparse_moe.gate", a.hidden, a.experts, false, ParameterRole::Router)
        .linear(expert + "w1", a.hidden, a.expertFfn, false, ParameterRole::Expert, a.experts)
        .linear(expert + "w3", a.hidden, a.expertFfn, false, ParameterRole::Expert, a.experts)
        .linear(expert + "w2", a.expertFfn, a.hidden, false, ParameterRole::Expert, a.experts)
        .mixtureOfExperts();

    LayerBuilder finalNorm(LayerKind::FinalNorm, "model.norm");
    finalNorm.norm("", a.hidden, a.norm);
    return assembled(a, embedding.build(), block.build(), finalNorm.build(), headLayer(a, "lm_head", false));
}

} // namespace shardwright
