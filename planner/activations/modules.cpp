#include "planner/activations/modules.hpp"

#include <algorithm>

namespace shardwright {

namespace {

/// Of a module whose first parameter plays this role, before inputs are told from outputs.
ModuleKind kindOf(const LayerType& type, ParameterRole role)
{
    switch (role) {
    case ParameterRole::Embedding:
    case ParameterRole::Position: return ModuleKind::Embedding;
    case ParameterRole::Attention: return ModuleKind::AttentionIn;
    case ParameterRole::Mlp: return ModuleKind::MlpIn;
    case ParameterRole::Expert: return ModuleKind::ExpertIn;
    case ParameterRole::SharedExpert: return ModuleKind::SharedIn;
    case ParameterRole::Router: return ModuleKind::Router;
    case ParameterRole::Norm:
        return type.kind == LayerKind::FinalNorm || type.kind == LayerKind::Embedding ? ModuleKind::FinalNorm
                                                                                      : ModuleKind::InputNorm;
    case ParameterRole::Head: return ModuleKind::Head;
    case ParameterRole::Lora: break;
    }
    return ModuleKind::MlpIn;
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
    for (ModuleParameters& owned : parametersByModule(type)) {
        LeafModule module;
        module.name = std::move(owned.name);
        module.parameters = std::move(owned.parameters);
        module.kind = kindOf(type, type.parameters[static_cast<std::size_t>(module.parameters.front())].role);
        for (const int index : module.parameters) {
            const ParameterSpec& parameter = type.parameters[static_cast<std::size_t>(index)];
            const std::int64_t all = checkedMultiply(parameter.numel, parameter.repeat);
            module.numel = checkedAdd(module.numel, all);
            (parameter.trainable ? module.trainable : module.frozen) += all;
            module.tensors += parameter.repeat;
            if (parameter.role == ParameterRole::Lora)
                module.loraRank = std::min(parameter.shape[0], parameter.shape[1]);
            else if (parameter.shape.size() == 2 && module.outFeatures == 0) {
                module.outFeatures = parameter.shape[0];
                module.inFeatures = parameter.shape[1];
            }
        }
        modules.push_back(std::move(module));
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
