#include "planner/frameworks/deepspeed/bucket_plan.hpp"

#include <map>

namespace shardwright {

BucketPlan planBuckets(const FlatOrder& order, const std::vector<GradientArrival>& arrivals, std::int64_t bucketSize)
{
    BucketPlan plan;
    std::map<std::vector<std::int64_t>, int> kinds;
    std::size_t open = 0; // first tensor in the bucket
    std::int64_t elements = 0;
    const auto flush = [&] {
        BucketFlush flushed{open, plan.tensors.size(), elements, 0};
        std::vector<std::int64_t> sizes;
        for (std::size_t i = flushed.firstTensor; i < flushed.endTensor; ++i) {
            sizes.push_back(plan.tensors[i].numel);
            sizes.push_back(plan.tensors[i].longestSide);
        }
        const auto [known, fresh] = kinds.emplace(std::move(sizes), static_cast<int>(kinds.size()));
        if (fresh)
            plan.kinds.push_back(plan.flushes.size());
        flushed.kind = known->second;
        plan.flushOf.resize(plan.tensors.size(), static_cast<std::int32_t>(plan.flushes.size()));
        plan.flushes.push_back(flushed);
        open = plan.tensors.size();
        elements = 0;
    };
    for (const GradientArrival& module : arrivals) {
        BucketArrival arrival{module, plan.tensors.size(), static_cast<std::int32_t>(plan.flushes.size()), 0};
        const auto [first, end] = order.range(module.layer, module.module);
        for (std::size_t i = first; i < end; ++i) {
            const FlatTensor& tensor = order.tensors()[i];
            if (elements > 0 && tensor.numel > bucketSize - elements)
                flush();
            plan.tensors.push_back(tensor);
            elements = checkedAdd(elements, tensor.numel);
        }
        arrival.endFlush = static_cast<std::int32_t>(plan.flushes.size());
        plan.arrivals.push_back(arrival);
    }
    if (elements > 0)
        flush();
    return plan;
}

std::vector<OwnerShare> ownerShares(const BucketPlan& plan, const BucketFlush& flush, std::int64_t partition)
{
    std::vector<OwnerShare> shares;
    std::map<std::int64_t, std::size_t> known; // of owners of a tensor's first or last elements
    std::int64_t before = -1;                  // whose elements come before
    const auto add = [&](std::int64_t owner, std::int64_t elements) {
        const auto [at, fresh] = known.emplace(owner, shares.size());
        if (fresh)
            shares.push_back({owner, 1, 0, true});
        OwnerShare& share = shares[at->second];
        share.elements = checkedAdd(share.elements, elements);
        share.inOnePiece = share.inOnePiece && (fresh || owner == before);
        before = owner;
    };
    for (std::size_t i = flush.firstTensor; i < flush.endTensor; ++i) {
        const FlatTensor& tensor = plan.tensors[i];
        const std::int64_t end = tensor.offset + tensor.numel;
        const std::int64_t first = tensor.offset / partition;
        const std::int64_t last = (end - 1) / partition;
        if (first == last) {
            add(first, tensor.numel);
            continue;
        }
        add(first, (first + 1) * partition - tensor.offset);
        if (last - first > 1) // nobody else's tensors reach into their partitions
            shares.push_back({first + 1, last - first - 1, partition, true});
        add(last, end - last * partition);
    }
    return shares;
}

ModuleGradient moduleGradient(const FlatOrder& order, int layer, int module, std::int64_t limit)
{
    ModuleGradient gradient;
    const auto [first, end] = order.range(layer, module);
    for (std::size_t i = first; i < end; ++i) {
        const FlatTensor& tensor = order.tensors()[i];
        if (tensor.numel <= limit) {
            gradient.bucketed.push_back(tensor);
            continue;
        }
        gradient.large.push_back(tensor);
        gradient.largePlaces.push_back(i - first);
    }
    return gradient;
}

std::int64_t ModuleGradient::bucketedElements() const
{
    std::int64_t sum = 0;
    for (const FlatTensor& tensor : bucketed)
        sum = checkedAdd(sum, tensor.numel);
    return sum;
}

std::int64_t ModuleGradient::elements() const
{
    std::int64_t sum = bucketedElements();
    for (const FlatTensor& tensor : large)
        sum = checkedAdd(sum, tensor.numel);
    return sum;
}

std::vector<BufferId> GradientBuffers::all() const
{
    std::vector<BufferId> buffers = large;
    if (bucketed >= 0)
        buffers.insert(buffers.begin(), bucketed);
    return buffers;
}

} // namespace shardwright
