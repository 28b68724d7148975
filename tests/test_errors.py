"""The exception tree is what its docstring draws."""

import kdcache.errors as errors


def test_tree_is_as_drawn():
    drawn = errors.__doc__ or ""
    classes = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.KdcacheError)]
    assert len(classes) == 10
    for cls in classes:
        assert cls.__name__ in drawn
    assert issubclass(errors.CacheStale, errors.CacheError)
    assert issubclass(errors.ParamsError, ValueError)
    assert issubclass(errors.ShapeError, ValueError)


def test_nearest_lists_all_when_nothing_is_close():
    assert errors.nearest("zzz", ["kl", "gram"]) == "Known: gram, kl."
    assert errors.nearest("grm", ["kl", "gram"]) == "Did you mean gram?"
