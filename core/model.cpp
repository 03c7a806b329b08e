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
            // Only experts, and adapters on them, repeat.
            const std::int64_t met =
                parameter.repeat > 1 ? std::min(parameter.repeat, architecture.expertsPerToken) : 1;
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

/// "self_attn.q_proj.lora_A.default" belongs to "self_attn.q_proj".
std::string ownerOf(const ParameterSpec& parameter)
{
    if (parameter.role != ParameterRole::Lora)
        return parameter.module;
    return parameter.module.substr(0, parameter.module.rfind(".lora_"));
}

} // namespace

std::vector<ModuleParameters> parametersByModule(const LayerType& type)
{
    std::vector<ModuleParameters> modules;
    for (std::size_t i = 0; i < type.parameters.size(); ++i) {
        const std::string owner = ownerOf(type.parameters[i]);
        auto it =
            std::find_if(modules.begin(), modules.end(), [&](const ModuleParameters& m) { return m.name == owner; });
        if (it == modules.end())
            it = modules.insert(modules.end(), {owner, {}});
        it->parameters.push_back(static_cast<int>(i));
    }
    return modules;
}

namespace {

std::string filledIn(const std::string& pattern, std::int64_t index)
{
    const std::size_t hole = pattern.find("{}");
    if (hole == std::string::npos)
        return pattern;
    return pattern.substr(0, hole) + std::to_string(index) + pattern.substr(hole + 2);
}

std::string joinedPath(const std::string& prefix, const std::string& name)
{
    return prefix.empty() || name.empty() ? prefix + name : prefix + "." + name;
}

std::string lastPart(const std::string& path)
{
    const std::size_t dot = path.rfind('.');
    return dot == std::string::npos ? path : path.substr(dot + 1);
}

/// peft's rule for a target: the whole module path or its last parts ("q_proj", "self_attn.q_proj").
bool endsWithParts(const std::string& path, const std::string& parts)
{
    if (path.size() == parts.size())
        return path == parts;
    return path.size() > parts.size() && path.compare(path.size() - parts.size(), parts.size(), parts) == 0 &&
           path[path.size() - parts.size() - 1] == '.';
}

/// The adapter pair of the matrix `target`. The names are peft's, for its adapter called "default".
std::vector<ParameterSpec> adaptersOf(const ParameterSpec& target, std::int64_t rank)
{
    const std::int64_t out = target.inputFirst ? target.shape[1] : target.shape[0];
    const std::int64_t in = target.inputFirst ? target.shape[0] : target.shape[1];
    const auto adapter = [&](const char* which, std::int64_t rows, std::int64_t columns) {
        ParameterSpec spec;
        spec.module = joinedPath(target.module, std::string(which) + ".default");
        spec.name = spec.module + ".weight";
        spec.shape = {rows, columns};
        spec.numel = checkedMultiply(rows, columns);
        spec.repeat = target.repeat;
        spec.role = ParameterRole::Lora;
        return spec;
    };
    return {adapter("lora_A", rank, in), adapter("lora_B", out, rank)};
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
                    list.push_back({joinedPath(prefix, name), parameter.shape, parameter.numel,
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
    std::set<std::string> offered;
    std::set<std::string> matched;
    const auto isTarget = [&](const LayerType& type, const ParameterSpec& parameter) {
        const bool holdsLinears = type.kind == LayerKind::Block || type.kind == LayerKind::Head;
        if (!holdsLinears || parameter.shape.size() != 2)
            return false;
        const std::string path = joinedPath(type.prefix, parameter.module);
        offered.insert(lastPart(path));
        if (lora.targetModules.empty())
            return type.kind == LayerKind::Block && parameter.role != ParameterRole::Router;
        bool any = false;
        for (const std::string& target : lora.targetModules)
            if (endsWithParts(path, target)) {
                matched.insert(target);
                any = true;
            }
        return any;
    };
    for (LayerType& type : adapted.layerTypes) {
        const bool outside = type.kind == LayerKind::Embedding || type.kind == LayerKind::Head;
        std::vector<ParameterSpec> parameters;
        for (ParameterSpec parameter : type.parameters) {
            parameter.trainable =
                (lora.trainEmbeddings && outside) || (lora.trainNorms && parameter.role == ParameterRole::Norm);
            parameters.push_back(parameter);
            if (isTarget(type, parameter))
                for (ParameterSpec& adapter : adaptersOf(parameter, lora.rank))
                    parameters.push_back(std::move(adapter));
        }
        type.parameters = std::move(parameters);
    }
    Findings findings(file);
    for (const std::string& target : lora.targetModules)
        if (!matched.contains(target))
            findings.add(place, fmt::format("no linear module of the model is called \"{}\"", target),
                         fmt::format("one of {}", fmt::join(offered, ", ")));
    findings.throwIfAny();
    return adapted;
}

} // namespace shardwright
