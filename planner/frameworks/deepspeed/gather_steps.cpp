#include "planner/frameworks/deepspeed/gather_steps.hpp"

namespace shardwright {

namespace {

/// The modules without parameters around the leaf modules (decoder layer, attention, MLP, its activation function) have
/// hooks too, so each is a step of the trace in which the coordinator may prefetch.
enum class Surroundings : std::uint8_t { None, Attention, MlpIn, MlpOut };

Surroundings surroundingsOf(ModuleKind kind)
{
    switch (kind) {
    case ModuleKind::AttentionIn:
    case ModuleKind::AttentionNorm:
    case ModuleKind::AttentionOut: return Surroundings::Attention;
    case ModuleKind::MlpIn: return Surroundings::MlpIn;
    case ModuleKind::MlpOut: return Surroundings::MlpOut;
    default: return Surroundings::None;
    }
}

GatherSteps walk(const ActivationModel& activations, const std::vector<Visit>& visits, const GatherUnits& units)
{
    GatherSteps found;
    int lastUnit = -1;
    int lastLayer = -1;
    Pass lastPass = Pass::Forward;
    Surroundings last = Surroundings::None;
    found.recomputes.assign(activations.model().layers.size(), false);
    for (std::size_t i = 0; i < visits.size(); ++i) {
        const Visit& visit = visits[i];
        const auto layer = static_cast<std::size_t>(visit.layer);
        const int unit = units.unitOf[layer][static_cast<std::size_t>(visit.module)];
        const LeafModule& module =
            activations.modules(activations.model().layers[layer])[static_cast<std::size_t>(visit.module)];
        if (visit.pass == Pass::Recompute)
            found.recomputes[layer] = true;
        const bool sameLayer = visit.layer == lastLayer && visit.pass == lastPass;
        if (sameLayer && unit == lastUnit && belongsToExperts(module.kind)) {
            found.steps.back().lastVisit = i;
            found.stepOfVisit.push_back(found.steps.size() - 1);
            continue;
        }
        const Surroundings now = surroundingsOf(module.kind);
        if (!sameLayer && activations.model().layer(layer).kind == LayerKind::Block)
            found.steps.push_back({-1, visit.pass, i});
        if (now != Surroundings::None && (now != last || !sameLayer))
            found.steps.push_back({-1, visit.pass, i});
        found.steps.push_back({unit, visit.pass, i});
        found.stepOfVisit.push_back(found.steps.size() - 1);
        lastUnit = unit;
        lastLayer = visit.layer;
        lastPass = visit.pass;
        last = now;
    }
    return found;
}

} // namespace

GatherSteps gatherSteps(const ActivationModel& activations, const std::vector<Visit>& visits, const GatherUnits& units)
{
    GatherSteps found = walk(activations, visits, units);
    const std::vector<GatherStep>& steps = found.steps;
    found.traced.assign(steps.size() + 1, 0);
    for (std::size_t i = 0; i < steps.size(); ++i)
        found.traced[i + 1] =
            checkedAdd(found.traced[i], steps[i].unit < 0 ? 0 : units.typeOf(steps[i].unit).tracedElements);
    found.nextUse.assign(steps.size(), steps.size());
    std::vector<std::size_t> next(units.units.size(), steps.size());
    for (std::size_t i = steps.size(); i-- > 0;)
        if (steps[i].unit >= 0) {
            found.nextUse[i] = next[static_cast<std::size_t>(steps[i].unit)];
            next[static_cast<std::size_t>(steps[i].unit)] = i;
        }
    return found;
}

} // namespace shardwright
