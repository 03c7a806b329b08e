#include "core/model.hpp"

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "core/diagnostics.hpp"

namespace shardwright {

std::int64_t LayerType::numel() const
{
    std::int64_t total = 0;
    for (const ParameterSpec& parameter : parameters)
        total = checkedAdd(total, checkedMultiply(parameter.numel, parameter.repeat));
    return total;
}

std::int64_t LayerType::trainableNumel() const
{
    std::int64_t total = 0;
    for (const ParameterSpec& parameter : parameters)
        if (parameter.trainable)
            total = checkedAdd(total, checkedMultiply(parameter.numel, parameter.repeat));
    return total;
}

std::int64_t LayerType::tensors() const
{
    std::int64_t total = 0;
    for (const ParameterSpec& parameter : parameters)
        total = checkedAdd(total, parameter.repeat);
    return total;
}

std::int64_t Model::layersOfType(int type) const
{
    return std::count(layers.begin(), layers.end(), type);
}

std::int64_t Model::parameters() const
{
    std::int64_t total = 0;
    for (std::size_t type = 0; type < layerTypes.size(); ++type)
        total = checkedAdd(total, checkedMultiply(layerTypes[type].numel(), layersOfType(static_cast<int>(type))));
    return total;
}

std::int64_t Model::trainableParameters() const
{
    std::int64_t total = 0;
    for (std::size_t type = 0; type < layerTypes.size(); ++type)
        total =
            checkedAdd(total, checkedMultiply(layerTypes[type].trainableNumel(), layersOfType(static_cast<int>(type))));
    return total;
}

std::int64_t Model::activeParameters() const
{
    std::int64_t total = 0;
    for (const int type : layers)
        for (const ParameterSpec& parameter : layerTypes[static_cast<std::size_t>(type)].parameters) {
            const std::int64_t met = parameter.role == ParameterRole::Expert
                                         ? std::min(parameter.repeat, architecture.expertsPerToken)
                                         : parameter.repeat;
            total = checkedAdd(total, checkedMultiply(parameter.numel, met));
        }
    return total;
}

std::int64_t Model::largestTensor() const
{
    std::int64_t largest = 0;
    for (const LayerType& type : layerTypes)
        for (const ParameterSpec& parameter : type.parameters)
            largest = std::max(largest, parameter.numel);
    return largest;
}

namespace {

std::string filledIn(const std::string& pattern, std::int64_t index)
{
    const std::size_t hole = pattern.find("{}");
    if (hole == std::string::npos)
        return pattern;
    return pattern.substr(0, hole) + std::to_string(index) + pattern.substr(hole + 2);
}

std::string lastPart(const std::string& module)
{
    const std::size_t dot = module.rfind('.');
    return dot == std::string::npos ? module : module.substr(dot + 1);
}

} // namespace

std::vector<NamedParameter> listParameters(const Model& model)
{
    std::vector<NamedParameter> list;
    std::int64_t block = 0;
    for (std::size_t position = 0; position < model.layers.size(); ++position) {
        const LayerType& type = model.layer(position);
        const std::string prefix = filledIn(type.prefix, block);
        // Experts interleave: all matrices of expert 0, then of expert 1, as the module list holds them.
        std::size_t first = 0;
        while (first < type.parameters.size()) {
            std::size_t end = first + 1;
            const std::int64_t repeat = type.parameters[first].repeat;
            while (repeat > 1 && end < type.parameters.size() && type.parameters[end].repeat == repeat)
                ++end;
            for (std::int64_t instance = 0; instance < repeat; ++instance)
                for (std::size_t i = first; i < end; ++i) {
                    const ParameterSpec& parameter = type.parameters[i];
                    const std::string name = filledIn(parameter.name, instance);
                    list.push_back({prefix.empty() ? name : prefix + "." + name, parameter.shape, parameter.numel,
                                    static_cast<std::int64_t>(position), parameter.trainable});
                }
            first = end;
        }
        if (type.kind == LayerKind::Block)
            ++block;
    }
    return list;
}

Model applyLora(const Model& model, const Lora& lora, const std::string& file, const std::string& place)
{
    Model adapted = model;
    std::set<std::string> modules;
    std::set<std::string> matched;
    const auto isTarget = [&](const ParameterSpec& parameter) {
        if (parameter.shape.size() != 2 || parameter.role == ParameterRole::Norm)
            return false;
        const std::string module = lastPart(parameter.module);
        modules.insert(module);
        if (lora.targetModules.empty())
            return parameter.role != ParameterRole::Router;
        for (const std::string& target : lora.targetModules)
            if (target == module) {
                matched.insert(target);
                return true;
            }
        return false;
    };
    for (LayerType& type : adapted.layerTypes) {
        std::vector<ParameterSpec> parameters;
        for (ParameterSpec parameter : type.parameters) {
            const bool outside = type.kind == LayerKind::Embedding || type.kind == LayerKind::Head;
            parameter.trainable =
                (lora.trainEmbeddings && outside) || (lora.trainNorms && parameter.role == ParameterRole::Norm);
            const bool target = type.kind == LayerKind::Block && isTarget(parameter);
            parameters.push_back(parameter);
            if (!target)
                continue;
            // GPT-2's Conv1D stores (in, out), a linear layer (out, in); the adapters' sizes are the same either way.
            const std::int64_t out = parameter.shape[0];
            const std::int64_t in = parameter.shape[1];
            const auto adapter = [&](const char* which, std::int64_t rows, std::int64_t columns) {
                ParameterSpec spec;
                spec.module = parameter.module + "." + which + ".default";
                spec.name = spec.module + ".weight";
                spec.shape = {rows, columns};
                spec.numel = checkedMultiply(rows, columns);
                spec.repeat = parameter.repeat;
                spec.role = ParameterRole::Lora;
                parameters.push_back(spec);
            };
            adapter("lora_A", lora.rank, in);
            adapter("lora_B", out, lora.rank);
        }
        type.parameters = std::move(parameters);
    }
    Findings findings(file);
    std::string offered;
    for (const std::string& module : modules)
        offered += (offered.empty() ? "" : ", ") + module;
    for (const std::string& target : lora.targetModules)
        if (!matched.contains(target))
            findings.add(place, fmt::format("no module of the model's blocks is called \"{}\"", target),
                         "one of " + offered);
    findings.throwIfAny();
    return adapted;
}

} // namespace shardwright
