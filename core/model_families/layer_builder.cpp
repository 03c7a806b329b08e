#include "core/model_families/layer_builder.hpp"

#include <algorithm>

namespace shardwright {

LayerBuilder::LayerBuilder(LayerKind kind, std::string prefix, std::string className)
{
    m_layer.kind = kind;
    m_layer.prefix = std::move(prefix);
    m_layer.className = std::move(className);
}

LayerBuilder& LayerBuilder::add(const std::string& module, const char* tensor, std::vector<std::int64_t> shape,
                                ParameterRole role, std::int64_t repeat)
{
    ParameterSpec parameter;
    parameter.name = module.empty() ? tensor : module + "." + tensor;
    parameter.module = module;
    parameter.numel = 1;
    for (const std::int64_t extent : shape)
        parameter.numel = checkedMultiply(parameter.numel, extent);
    parameter.shape = std::move(shape);
    parameter.repeat = repeat;
    parameter.role = role;
    m_layer.parameters.push_back(std::move(parameter));
    return *this;
}

LayerBuilder& LayerBuilder::linear(const std::string& module, std::int64_t in, std::int64_t out, bool bias,
                                   ParameterRole role, std::int64_t repeat)
{
    add(module, "weight", {out, in}, role, repeat);
    if (bias)
        add(module, "bias", {out}, role, repeat);
    return *this;
}

LayerBuilder& LayerBuilder::conv1d(const std::string& module, std::int64_t in, std::int64_t out, ParameterRole role)
{
    add(module, "weight", {in, out}, role);
    m_layer.parameters.back().inputFirst = true;
    return add(module, "bias", {out}, role);
}

LayerBuilder& LayerBuilder::embedding(const std::string& module, std::int64_t rows, std::int64_t width,
                                      ParameterRole role)
{
    return add(module, "weight", {rows, width}, role);
}

LayerBuilder& LayerBuilder::norm(const std::string& module, std::int64_t size, NormKind kind, bool bias)
{
    add(module, "weight", {size}, ParameterRole::Norm);
    if (kind == NormKind::LayerNorm && bias)
        add(module, "bias", {size}, ParameterRole::Norm);
    return *this;
}

LayerBuilder& LayerBuilder::mixtureOfExperts()
{
    m_layer.mixtureOfExperts = true;
    return *this;
}

LayerType LayerBuilder::build() const
{
    m_layer.numel();
    return m_layer;
}

void addAttention(LayerBuilder& layer, const Architecture& a, const AttentionStyle& style)
{
    const std::int64_t queries = checkedMultiply(a.heads, a.headDim);
    const std::int64_t keys = checkedMultiply(a.kvHeads, a.headDim);
    layer.linear("self_attn.q_proj", a.hidden, queries, style.qkvBias, ParameterRole::Attention)
        .linear("self_attn.k_proj", a.hidden, keys, style.qkvBias, ParameterRole::Attention)
        .linear("self_attn.v_proj", a.hidden, keys, style.qkvBias, ParameterRole::Attention);
    if (style.qkNormSize > 0)
        layer.norm(std::string("self_attn.") + style.queryNorm, style.qkNormSize, a.norm)
            .norm(std::string("self_attn.") + style.keyNorm, style.qkNormSize, a.norm);
    layer.linear(std::string("self_attn.") + style.output, queries, a.hidden, style.outputBias,
                 ParameterRole::Attention);
}

void addGatedMlp(LayerBuilder& layer, const std::string& prefix, std::int64_t hidden, std::int64_t ffn, bool bias,
                 ParameterRole role, std::int64_t repeat)
{
    layer.linear(prefix + ".gate_proj", hidden, ffn, bias, role, repeat)
        .linear(prefix + ".up_proj", hidden, ffn, bias, role, repeat)
        .linear(prefix + ".down_proj", ffn, hidden, bias, role, repeat);
}

LayerType headLayer(const Architecture& a, const char* module, bool bias)
{
    LayerBuilder head(LayerKind::Head, module);
    head.linear("", a.hidden, a.vocab, bias, ParameterRole::Head);
    LayerType layer = head.build();
    if (a.tiedEmbedding)
        layer.parameters.erase(layer.parameters.begin());
    return layer;
}

Model assembled(const Architecture& architecture, LayerType embedding, const LayerType& block, LayerType finalNorm,
                LayerType head)
{
    const std::vector<bool> isSparse(static_cast<std::size_t>(architecture.layers), block.mixtureOfExperts);
    return assembledMixed(architecture, std::move(embedding), block, block, isSparse, std::move(finalNorm),
                          std::move(head));
}

Model assembledMixed(const Architecture& architecture, LayerType embedding, const LayerType& dense,
                     const LayerType& sparse, const std::vector<bool>& isSparse, LayerType finalNorm, LayerType head)
{
    Model model;
    model.architecture = architecture;
    const auto addType = [&](LayerType type) {
        model.layerTypes.push_back(std::move(type));
        return static_cast<int>(model.layerTypes.size()) - 1;
    };
    model.layers.reserve(isSparse.size() + 3);
    model.layers.push_back(addType(std::move(embedding)));
    // Only kinds that occur become a LayerType.
    const bool anyDense = std::find(isSparse.begin(), isSparse.end(), false) != isSparse.end();
    const bool anySparse = std::find(isSparse.begin(), isSparse.end(), true) != isSparse.end();
    const int denseType = anyDense ? addType(dense) : -1;
    const int sparseType = anySparse ? addType(sparse) : -1;
    for (const bool routed : isSparse)
        model.layers.push_back(routed ? sparseType : denseType);
    model.layers.push_back(addType(std::move(finalNorm)));
    model.layers.push_back(addType(std::move(head)));
    return model;
}

} // namespace shardwright
