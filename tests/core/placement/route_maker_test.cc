#include "core/placement/route_maker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "core/devices/cpu_device.h"
#include "tests/testing/fake_device.h"

namespace ditserve {
namespace {

const Precision kStored(DType::kBFloat16);
const Encoding kPlain = {kStored, DType::kBFloat16};
const Encoding kFloat8 = {kStored.Through(DType::kFloat8E4M3), DType::kFloat8E4M3};

// An int8 weight and a plain bias.
CopyForm Scaled(const Scales& scales) { return {{{kStored, DType::kInt8, scales}, kPlain}}; }

TEST(FormTableTest, EqualFormsHaveOneNumber) {
  FormTable forms;
  const FormId plain = forms.Intern({{kPlain, kPlain}});
  const FormId scaled = forms.Intern(Scaled({Granularity::kRow, DType::kFloat32}));
  EXPECT_EQ(forms.Intern({{kPlain, kPlain}}), plain);
  EXPECT_EQ(forms.Intern(Scaled({Granularity::kRow, DType::kFloat32})), scaled);
  EXPECT_NE(plain, scaled);
  EXPECT_EQ(forms.form(scaled), Scaled({Granularity::kRow, DType::kFloat32}));
}

TEST(FormTableTest, FormsThatDifferInOneThingAreDifferent) {
  const std::vector<CopyForm> all = {
      {{kPlain, kPlain}},
      {{kPlain}},
      {{{kStored, DType::kFloat32}, kPlain}},
      {{kPlain, {kStored, DType::kFloat32}}},
      {{kPlain, {kStored.Through(DType::kFloat8E4M3), DType::kBFloat16}}},
      {{{kStored, DType::kInt8}, kPlain}},
      Scaled({Granularity::kTensor, DType::kFloat32}),
      Scaled({Granularity::kRow, DType::kFloat32}),
      Scaled({Granularity::kRow, DType::kBFloat16}),
      Scaled({Granularity::kBlock, DType::kFloat32, 64}),
      Scaled({Granularity::kBlock, DType::kFloat32, 128}),
      {{kPlain, {kStored, DType::kInt8, Scales{Granularity::kRow, DType::kFloat32}}}},
  };
  FormTable forms;
  std::set<FormId> ids;
  for (const CopyForm& form : all) ids.insert(forms.Intern(form));
  EXPECT_EQ(ids.size(), all.size());
}

TEST(FormTableTest, AFormLeadsWhereEachOfItsParametersDoes) {
  FormTable forms;
  const FormId plain = forms.Intern({{kPlain, kPlain}}), weight = forms.Intern({{kFloat8, kPlain}}),
               bias = forms.Intern({{kPlain, kFloat8}}), both = forms.Intern({{kFloat8, kFloat8}});
  for (const FormId form : {plain, weight, bias, both}) {
    EXPECT_TRUE(forms.Leads(plain, form));
    EXPECT_TRUE(forms.Leads(form, form));
    EXPECT_TRUE(forms.Leads(form, both));
  }
  EXPECT_FALSE(forms.Leads(weight, bias));
  EXPECT_FALSE(forms.Leads(bias, weight));
  EXPECT_FALSE(forms.Leads(both, plain));
}

TEST(FormTableTest, DtypesOfElementsDoNotMatterToWhereAFormLeads) {
  FormTable forms;
  const FormId plain = forms.Intern({{kPlain, kPlain}});
  const FormId mixed = forms.Intern({{{kStored, DType::kFloat32}, kPlain}});
  EXPECT_TRUE(forms.Leads(plain, mixed));
  EXPECT_TRUE(forms.Leads(mixed, plain));
}

// Quantising is no rounding, and no transfer moves scales.
TEST(FormTableTest, NothingLeadsToScalesOrFromThem) {
  FormTable forms;
  const FormId plain = forms.Intern({{kPlain, kPlain}});
  const FormId row = forms.Intern(Scaled({Granularity::kRow, DType::kFloat32}));
  const FormId tensor = forms.Intern(Scaled({Granularity::kTensor, DType::kFloat32}));
  for (const FormId scaled : {row, tensor}) {
    EXPECT_FALSE(forms.Leads(plain, scaled));
    EXPECT_FALSE(forms.Leads(scaled, plain));
    EXPECT_FALSE(forms.Leads(scaled, row));
    EXPECT_FALSE(forms.Leads(scaled, tensor));
  }
}

TEST(FormTableTest, AFormStaysWhereItIs) {
  FormTable forms;
  const FormId first = forms.Intern({{kPlain, kPlain}});
  const CopyForm* const at = &forms.form(first);
  for (int i = 1; i <= 1000; ++i) forms.Intern(Scaled({Granularity::kBlock, DType::kFloat32, i}));
  EXPECT_EQ(&forms.form(first), at);
  EXPECT_EQ(*at, (CopyForm{{kPlain, kPlain}}));
}

TEST(RouteMakerTest, DevicesThatDifferInNothingThatRoutesAreMadeOfHaveEqualOnes) {
  const FakeDevice first, second(/*computes_in_host_memory=*/false, DeviceMemory(1)), in_host(true, DeviceMemory(1));
  EXPECT_TRUE(HaveEqualRoutes(first, second));
  EXPECT_FALSE(HaveEqualRoutes(first, in_host));
  const auto native = MakeCpuDevice(CpuBFloat16::kNative), wide = MakeCpuDevice(CpuBFloat16::kFloat32);
  EXPECT_TRUE(HaveEqualRoutes(*native, *native));
  EXPECT_FALSE(HaveEqualRoutes(*native, *wide));
}

}  // namespace
}  // namespace ditserve
