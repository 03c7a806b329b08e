#include "planner/published/ledger.hpp"

#include <algorithm>
#include <cmath>
#include <map>

#include "planner/published/statistics.hpp"

namespace shardwright {

namespace {

LedgerSource sourceOf(const std::string& name, const std::vector<const LedgerRow*>& rows)
{
    LedgerSource source;
    source.name = name;
    std::map<LedgerQuantity, std::vector<const FigureComparison*>> figures;
    for (const LedgerRow* row : rows) {
        const LedgerQuantity quantity = quantityOf(row->figure.kind);
        figures[quantity].push_back(&row->figure);
        if (quantity == LedgerQuantity::Verdict && row->figure.outcome != FigureOutcome::NotPossible) {
            ++source.verdicts;
            source.verdictsRight += row->figure.outcome == FigureOutcome::ToldRight ? 1 : 0;
        }
    }
    source.memory = errorStatistics(figures[LedgerQuantity::Memory]);
    source.time = errorStatistics(figures[LedgerQuantity::Time]);
    for (const PeerClaim& claim : peerClaims())
        if (claim.source == name)
            source.peers.push_back(claim);
    return source;
}

} // namespace

LedgerQuantity quantityOf(MeasuredKind kind)
{
    switch (kind) {
    case MeasuredKind::GpuAllocated:
    case MeasuredKind::GpuReserved:
    case MeasuredKind::GpuUsed:
    case MeasuredKind::GpuHeld:
    case MeasuredKind::GpuStates:
    case MeasuredKind::HostUsed: return LedgerQuantity::Memory;
    case MeasuredKind::StepSeconds: return LedgerQuantity::Time;
    case MeasuredKind::Fits:
    case MeasuredKind::OutOfMemory: return LedgerQuantity::Verdict;
    case MeasuredKind::TflopsPerGpu: // in each source's own count of operations
    case MeasuredKind::HardwareTflopsPerGpu:
    case MeasuredKind::LargestModel:
    case MeasuredKind::InterNodeBytes:
    case MeasuredKind::Speedup:
    case MeasuredKind::ForwardGatherSeconds:
    case MeasuredKind::BackwardGatherSeconds:
    case MeasuredKind::ReduceScatterSeconds:
    case MeasuredKind::HostOptimizerSeconds: // what the cost of it was taken from
    case MeasuredKind::ActivationRatio:
    case MeasuredKind::SlowerPerGpu:
    case MeasuredKind::MoreGpuMemory: break;
    }
    return LedgerQuantity::Other;
}

const std::vector<PeerClaim>& peerClaims()
{
    static const std::vector<PeerClaim> claims{
        {"megatron-2205-05198", LedgerQuantity::Time, "Calculon", 0.0365, 0.0887,
         "Isaev et al., Calculon: a methodology and tool for high-level co-design of systems and large language "
         "models, SC23, validation against arXiv 2205.05198"},
        {"megatron-2205-05198", LedgerQuantity::Memory, "Calculon", 0.0849, std::nullopt,
         "calculon/llm/validation.py of github.com/calculon-ai/calculon, the tool's own validation of memory"},
        {"vtrain-multi-node", LedgerQuantity::Time, "vTrain", 0.1473, std::nullopt,
         "Bang et al., vTrain, MICRO'24, arXiv 2312.12391: 14.73 % mean on several nodes, with kernel times "
         "profiled on the GPU"}};
    return claims;
}

ErrorStatistics errorStatistics(const std::vector<const FigureComparison*>& figures)
{
    ErrorStatistics statistics;
    std::vector<double> absolute;
    double sum = 0;
    double signedSum = 0;
    for (const FigureComparison* figure : figures) {
        ++statistics.figures;
        statistics.refused += figure->outcome == FigureOutcome::NotPossible ? 1 : 0;
        statistics.notPredicted += figure->outcome == FigureOutcome::NotPredicted ? 1 : 0;
        statistics.cannotBeRight += figure->objections.empty() ? 0 : 1;
        if (!figure->counts())
            continue;
        absolute.push_back(std::abs(*figure->error));
        sum += absolute.back();
        signedSum += *figure->error;
    }
    statistics.compared = static_cast<std::int64_t>(absolute.size());
    if (absolute.empty())
        return statistics;
    const auto count = static_cast<double>(absolute.size());
    statistics.mean = sum / count;
    statistics.bias = signedSum / count;
    statistics.worst = *std::max_element(absolute.begin(), absolute.end());
    statistics.median = medianOf(std::move(absolute));
    return statistics;
}

Ledger ledgerOf(std::vector<LedgerRow> rows)
{
    Ledger ledger;
    ledger.rows = std::move(rows);
    std::vector<std::string> order;
    std::map<std::string, std::vector<const LedgerRow*>> bySource;
    std::vector<const LedgerRow*> every;
    for (const LedgerRow& row : ledger.rows) {
        auto& group = bySource[row.source];
        if (group.empty())
            order.push_back(row.source);
        group.push_back(&row);
        every.push_back(&row);
    }
    for (const std::string& name : order)
        ledger.sources.push_back(sourceOf(name, bySource[name]));
    ledger.all = sourceOf("all", every);
    return ledger;
}

} // namespace shardwright
