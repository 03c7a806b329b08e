#include "planner/activations/modules.hpp"

#include <algorithm>

namespace shardwright {

namespace {

/// "self_attn.q_proj.lora_A.default" belongs to "self_attn.q_proj".
std::string ownerOf(const ParameterSpec& parameter)
{
    if (parameter.role != ParameterRole::Lora)
        return parameter.module;
    const std::size_t adapter = parameter.module.rfind(".lora_");
    return adapter == std::string::npos ? parameter.module : parameter.module.substr(0, adapter);
}

/// Matrices of attention (or of an MLP) are inputs, except the last of them: Model lists parameters in forward order.
void tellInputsFromOutputs(std::vector<LeafModule>& modules, ModuleKind in, ModuleKind out)
{
    const auto last =
        std::find_if(modules.rbegin(), modules.rend(), [in](const LeafModule& m) { return m.kind == in; });
    if (last != modules.rend())
        last->kind = out;
}

void classifyNorms(std::vector<LeafModule>& modules)
{
    const auto kindAt = [&](std::size_t i) { return modules[i].kind; };
    const auto isNorm = [&](std::size_t i) { return kindAt(i) == ModuleKind::InputNorm; };
    for (std::size_t i = 0; i < modules.size(); ++i) {
        if (!isNorm(i))
            continue;
        bool attentionBefore = false;
        bool attentionOutBefore = false;
        bool mlpOutBefore = false;
        for (std::size_t j = 0; j < i; ++j) {
            attentionBefore |= kindAt(j) == ModuleKind::AttentionIn;
            attentionOutBefore |= kindAt(j) == ModuleKind::AttentionOut;
            mlpOutBefore |= kindAt(j) == ModuleKind::MlpOut || kindAt(j) == ModuleKind::ExpertOut;
        }
        if (mlpOutBefore)
            modules[i].kind = ModuleKind::PostMlpNorm;
        else if (attentionOutBefore)
            modules[i].kind = ModuleKind::PostAttentionNorm;
        else if (attentionBefore)
            modules[i].kind = ModuleKind::AttentionNorm;
    }
}

} // namespace

std::vector<LeafModule> leafModules(const LayerType& type)
{
    std::vector<LeafModule> modules;
    for (std::size_t i = 0; i < type.parameters.size(); ++i) {
        const ParameterSpec& parameter = type.parameters[i];
        const std::string owner = ownerOf(parameter);
        auto it = std::find_if(modules.begin(), modules.end(), [&](const LeafModule& m) { return m.name == owner; });
        if (it == modules.end()) {
            LeafModule module;
            module.name = owner;
            switch (parameter.role) {
            case ParameterRole::Embedding:
            case ParameterRole::Position: module.kind = ModuleKind::Embedding; break;
            case ParameterRole::Attention: module.kind = ModuleKind::AttentionIn; break;
            case ParameterRole::Mlp: module.kind = ModuleKind::MlpIn; break;
            case ParameterRole::Expert: module.kind = ModuleKind::ExpertIn; break;
            case ParameterRole::SharedExpert: module.kind = ModuleKind::SharedIn; break;
            case ParameterRole::Router: module.kind = ModuleKind::Router; break;
            case ParameterRole::Norm:
                module.kind = type.kind == LayerKind::FinalNorm || type.kind == LayerKind::Embedding
                                  ? ModuleKind::FinalNorm
                                  : ModuleKind::InputNorm;
                break;
            case ParameterRole::Head: module.kind = ModuleKind::Head; break;
            case ParameterRole::Lora: break;
            }
            modules.push_back(module);
            it = modules.end() - 1;
        }
        const std::int64_t all = checkedMultiply(parameter.numel, parameter.repeat);
        it->numel = checkedAdd(it->numel, all);
        (parameter.trainable ? it->trainable : it->frozen) += all;
        it->tensors += parameter.repeat;
        it->parameters.push_back(static_cast<int>(i));
        if (parameter.role == ParameterRole::Lora)
            it->loraRank = std::min(parameter.shape[0], parameter.shape[1]);
        else if (parameter.shape.size() == 2 && it->outFeatures == 0) {
            it->outFeatures = parameter.shape[0];
            it->inFeatures = parameter.shape[1];
        }
    }
    tellInputsFromOutputs(modules, ModuleKind::AttentionIn, ModuleKind::AttentionOut);
    tellInputsFromOutputs(modules, ModuleKind::MlpIn, ModuleKind::MlpOut);
    tellInputsFromOutputs(modules, ModuleKind::ExpertIn, ModuleKind::ExpertOut);
    tellInputsFromOutputs(modules, ModuleKind::SharedIn, ModuleKind::SharedOut);
    if (type.kind == LayerKind::Block)
        classifyNorms(modules);
    return modules;
}

} // namespace shardwright
