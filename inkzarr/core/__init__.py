"""The ground floor: geometry, schema, stores, the block runner, surfaces and blending."""
