#include "planner/search/memory_check.hpp"

#include "planner/overheads.hpp"

namespace shardwright::search {

namespace {

// Compiled structures kept at a time, some ten KiB each, and settings, a hundred bytes each.
constexpr std::size_t kMostForms = 2000;
constexpr std::size_t kMostSettings = 50000;

/// By how many bytes `need` passes `have`; 0 where it does not.
double excess(Bytes need, Bytes have)
{
    return need > have ? (need - have).asDouble() : 0;
}

} // namespace

Bytes bytesOf(const Figure& figure)
{
    return Bytes(static_cast<std::int64_t>(figure.value));
}

ClosedForm& MemoryCheck::formOf(const PlanInput& input, const std::pair<Path, int>& setting)
{
    if (m_settings.size() > kMostSettings)
        m_settings.clear();
    ClosedForm*& known = m_settings[setting];
    if (known != nullptr)
        return *known;
    auto rules = makeRules(input);
    const std::string key = rules->structureKey();
    auto form = m_forms.find(key);
    if (form == m_forms.end()) {
        if (m_forms.size() > kMostForms) {
            m_settings.clear();
            m_forms.clear();
        }
        form = m_forms.emplace(key, std::make_unique<ClosedForm>(std::move(rules), input.model)).first;
    }
    return *(m_settings[setting] = form->second.get());
}

MemoryCheck::Result MemoryCheck::check(const PlanInput& input, const std::pair<Path, int>& setting)
{
    ClosedForm& form = formOf(input, setting);
    const ClosedFormResult figures = form.evaluate(input);
    Bytes overhead;
    for (const Overhead& each : gpuOverheads(input.cluster, form.rules().communicators()))
        overhead += each.bytes;
    const Cluster& cluster = input.cluster;
    Result result;
    result.used = figures.peakAllocated + overhead;
    const auto refuse = [&](Obstacle obstacle, const char* text, double miss) {
        if (miss <= 0 || result.obstacle)
            return;
        result.obstacle = Reason{obstacle, text};
        result.miss = miss;
    };
    const Bytes capacity = bytesOf(cluster.gpu.memory);
    refuse(Obstacle::GpuMemory, "GPU memory over the step", excess(result.used, capacity));
    refuse(Obstacle::GpuMemory, "GPU memory at initialisation", excess(figures.initPeak + overhead, capacity));
    const Bytes host = bytesOf(cluster.hostMemory);
    refuse(Obstacle::HostMemory, "host memory of a node",
           excess((figures.hostPinned + figures.hostPageable) * cluster.gpusPerNode, host));
    refuse(Obstacle::HostMemory, "host memory of a node while the model is loaded",
           excess(form.rules().hostInitPeakPerNode(), host));
    refuse(Obstacle::Nvme, "NVMe of a node", excess(figures.nvme * cluster.gpusPerNode, bytesOf(cluster.nvmeCapacity)));
    return result;
}

} // namespace shardwright::search
